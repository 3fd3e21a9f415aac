# The token shards that are missing, a batch of them a job. A batch is of this plan only, and
# its mark goes with the plan; the token shards stay, each under the key of what it is made from.
rule tokenize:
    input:
        batch_inputs,
    output:
        touch(plan.mark("{batch}")),
    log:
        "logs/tokenize/{batch}.log",
    benchmark:
        "logs/tokenize/{batch}.tsv"
    wildcard_constraints:
        batch="[^/]+",
    container:
        image("tokenize")
    threads: of(tokenize_needs, "threads")
    resources:
        mem_mb=of(tokenize_needs, "mem_mb"),
        runtime=of(tokenize_needs, "minutes"),
    params:
        plan=plan.path,
    shell:
        "tokencache tokenize --plan {params.plan:q} --threads {threads} {wildcards.batch:q} 2>&1 | tee {log:q}"


# All batches of a token set: one thing to wait for, where hundreds of caches wait for hundreds
# of batches.
rule token_set:
    input:
        token_set_inputs,
    output:
        touch(plan.set_mark("{token_set}")),
