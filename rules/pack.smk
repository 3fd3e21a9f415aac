# Token shards cut to max_length, packed and split: a data set that any trainer opens.
# A large one is written in parts, which jobs of their own make.
rule pack_part:
    input:
        part_inputs,
    output:
        update(directory(f"{settings.cache}/{{part}}")),
    log:
        "logs/pack_part/{part}.log",
    benchmark:
        "logs/pack_part/{part}.tsv"
    wildcard_constraints:
        part=f"{one_of(settings.models)}/.+/[.][0-9]+-[0-9a-f]+[.]parts/[0-9]+-of-[0-9]+",
    container:
        image("tokenize")
    threads: of(part_needs, "threads")
    resources:
        mem_mb=of(part_needs, "mem_mb"),
        runtime=of(part_needs, "minutes"),
    params:
        plan=plan.path,
    shell:
        "tokencache pack-part --plan {params.plan:q} --threads {threads} {output:q} 2>&1 | tee {log:q}"


rule pack:
    input:
        cache_inputs,
    output:
        # Each cache's data report, in `snakemake --report`.
        update(
            report(
                directory(f"{settings.cache}/{{cache}}"),
                patterns=["{page}.html"],
                category="Data",
                labels={"cache": "{cache}"},
            )
        ),
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
        "tokencache pack --plan {params.plan:q} --threads {threads} {output:q} 2>&1 | tee {log:q}"
