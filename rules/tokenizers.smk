# A model's tokenizer as one folder: copied from what config.yaml names, or trained here.
localrules:
    materialize_tokenizer,


rule materialize_tokenizer:
    input:
        given_tokenizer_inputs,
    output:
        update(directory(tokenizer_path(plan.cache, "{tokenizer}"))),
    log:
        "logs/materialize_tokenizer/{tokenizer}.log",
    wildcard_constraints:
        tokenizer=one_of(plan.tokenizer_keys(trained=False)),
    container:
        no_image
    params:
        plan=plan.path,
    shell:
        "tokencache materialize-tokenizer --plan {params.plan:q} --threads {threads} {output:q} 2>&1 | tee {log:q}"


rule train_tokenizer:
    input:
        trained_tokenizer_inputs,
    output:
        update(directory(tokenizer_path(plan.cache, "{tokenizer}"))),
    log:
        "logs/train_tokenizer/{tokenizer}.log",
    benchmark:
        "logs/train_tokenizer/{tokenizer}.tsv"
    wildcard_constraints:
        tokenizer=one_of(plan.tokenizer_keys(trained=True)),
    container:
        image("tokenize")
    threads: of(train_tokenizer_needs, "threads")
    resources:
        mem_mb=of(train_tokenizer_needs, "mem_mb"),
        runtime=of(train_tokenizer_needs, "minutes"),
    params:
        plan=plan.path,
    shell:
        "tokencache train-tokenizer --plan {params.plan:q} --threads {threads} {output:q} 2>&1 | tee {log:q}"
