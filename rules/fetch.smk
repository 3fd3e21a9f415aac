# Hub data sets become Arrow files of this machine. What needs a network runs where the user is.
localrules:
    fetch,


rule fetch:
    output:
        update(directory(fetched_path(plan.cache, "{fetched}"))),
    log:
        "logs/fetch/{fetched}.log",
    container:
        no_image
    threads: limits.asked(1)
    params:
        plan=plan.path,
    shell:
        "tokencache fetch --plan {params.plan:q} --threads {threads} {output:q} 2>&1 | tee {log:q}"
