# A model's tokenizer as one folder: copied from what config.yaml names, or trained here.
localrules:
    materialize_tokenizer,


rule materialize_tokenizer:
    output:
        directory(tokenizer_path(plan.cache, "{tokenizer}")),
    log:
        "logs/materialize_tokenizer/{tokenizer}.log",
    wildcard_constraints:
        tokenizer=one_of(plan.tokenizer_keys(trained=False)),
    params:
        plan=plan.path,
    shell:
        "tokencache materialize-tokenizer --plan {params.plan} {output} 2>&1 | tee {log}"


rule train_tokenizer:
    input:
        tokenizer_inputs,
    output:
        directory(tokenizer_path(plan.cache, "{tokenizer}")),
    log:
        "logs/train_tokenizer/{tokenizer}.log",
    benchmark:
        "logs/train_tokenizer/{tokenizer}.tsv"
    wildcard_constraints:
        tokenizer=one_of(plan.tokenizer_keys(trained=True)),
    threads: 8
    params:
        plan=plan.path,
    shell:
        "tokencache train-tokenizer --plan {params.plan} --threads {threads} {output} 2>&1 | tee {log}"
