# Token shards cut to max_length, packed and split: a data set that any trainer opens.
rule pack:
    input:
        cache_inputs,
    output:
        update(directory(f"{settings.cache}/{{cache}}")),
    log:
        "logs/pack/{cache}.log",
    benchmark:
        "logs/pack/{cache}.tsv"
    wildcard_constraints:
        cache=f"{one_of(settings.models)}/.+/[0-9]+-[0-9a-f]+",
    container:
        image("tokenize")
    threads: of(pack_needs, "threads")
    resources:
        mem_mb=of(pack_needs, "mem_mb"),
        runtime=of(pack_needs, "minutes"),
    params:
        plan=plan.path,
    shell:
        "tokencache pack --plan {params.plan} {output:q} 2>&1 | tee {log}"
