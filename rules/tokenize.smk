# The token shards that are missing, a batch of them a job. A batch is of this plan only, so
# its mark goes again; the token shards stay, each under the key of what it is made from.
rule tokenize:
    input:
        batch_inputs,
    output:
        temp(touch(plan.marker("{batch}"))),
    log:
        "logs/tokenize/{batch}.log",
    benchmark:
        "logs/tokenize/{batch}.tsv"
    threads: 2
    params:
        plan=plan.path,
    shell:
        "tokencache tokenize --plan {params.plan} --threads {threads} {wildcards.batch} 2>&1 | tee {log}"
