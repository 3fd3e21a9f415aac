# Hub data sets become Arrow files of this machine: the one stage that needs a network.
localrules:
    fetch,


rule fetch:
    input:
        fetch_inputs,
    output:
        update(directory(fetched_path(plan.cache, "{fetched}"))),
    log:
        "logs/fetch/{fetched}.log",
    container:
        image("tokenize")
    params:
        plan=plan.path,
    shell:
        "tokencache fetch --plan {params.plan} {output:q} 2>&1 | tee {log}"
