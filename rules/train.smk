# One model trained on one cache. A run that was stopped goes on from its last checkpoint.
rule train:
    input:
        run_inputs,
    output:
        # The plots of each run, in `snakemake --report`.
        update(
            report(
                directory(f"{plan.results}/{{run}}"),
                patterns=["{plot}.svg"],
                category="Runs",
                labels={"run": "{run}", "plot": "{plot}"},
            )
        ),
    log:
        "logs/train/{run}.log",
    benchmark:
        "logs/train/{run}.tsv"
    wildcard_constraints:
        run=f"{one_of(settings.models)}/.+/[0-9]+-[0-9a-f]+",
    container:
        train_image
    threads: of(train_needs, "threads")
    resources:
        mem_mb=of(train_needs, "mem_mb"),
        runtime=of(train_needs, "minutes"),
        # For a run on several nodes; with mpi, SLURM starts this job once, not once a node.
        nodes=train_nodes,
        tasks=train_nodes,
        mpi=train_mpi,
        tasks_per_gpu=train_tasks_per_gpu,
    params:
        plan=plan.path,
        within=train_within,
    shell:
        # A signal to all processes of a job is for the training alone, and neither for what
        # waits for it nor for its log. `trap :` lets the training have it from its first moment,
        # while what a shell ignores is ignored by all that it starts.
        "trap : TERM USR1; "
        "tokencache train --plan {params.plan:q} --threads {threads} {params.within:q} {output:q} 2>&1"
        " | (trap '' TERM USR1; exec tee {log:q})"
