# One model trained on one cache. A run that was stopped goes on from its last checkpoint.
rule train:
    input:
        run_inputs,
    output:
        update(directory(f"{plan.results}/{{run}}")),
    log:
        "logs/train/{run}.log",
    benchmark:
        "logs/train/{run}.tsv"
    wildcard_constraints:
        run=f"{one_of(settings.models)}/.+/[0-9]+-[0-9a-f]+",
    container:
        image("train")
    threads: of(train_needs, "threads")
    resources:
        mem_mb=of(train_needs, "mem_mb"),
        runtime=of(train_needs, "minutes"),
    params:
        plan=plan.path,
    shell:
        "tokencache train --plan {params.plan} --threads {threads} {output:q} 2>&1 | tee {log}"
