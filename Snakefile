# tokencache: tokenize once, train many.
#
#   sources → shards → token shards → caches → runs
#
# Every target's path carries a key: a hash of what decides its bytes. What is there is
# fresh; what is stale has another path. The plan knows them all (rules/common.smk).
from snakemake.utils import min_version

min_version("9.0")


# config.yaml (or what --configfile names) and the plan that follows from it.
include: "rules/common.smk"
include: "rules/containers.smk"


if cleaning:

    include: "rules/clean.smk"

else:

    include: "rules/resources.smk"
    include: "rules/fetch.smk"
    include: "rules/tokenizers.smk"
    include: "rules/tokenize.smk"
    include: "rules/pack.smk"
    include: "rules/train.smk"
    include: "rules/images.smk"


rule all:
    default_target: True
    input:
        targets("caches", "runs"),


rule caches:
    input:
        targets("caches"),


# The containers that `--software-deployment-method apptainer` runs jobs in.
rule images:
    input:
        [image(name) for name in images.NAMES],


# One target a model, by its name in config.yaml: `snakemake qwen`.
for model in settings.models:

    rule:
        name:
            model
        input:
            targets("caches", "runs", model=model),


# Jobs get the plan from a file, which a dry run does not write.
onstart:
    with without_traceback():
        ask_about_jobs()
        plan.make_folders()
        plan.write()
        announcement.start()
        leftovers.take(plan)
        workflow_file.start()
        prepare_containers()


# That no job failed does not say that all is there, and the exit status has to.
onsuccess:
    problem = lacking()
    end()
    print(summary.table(plan), file=sys.stderr)
    if problem:
        raise SystemExit(problem)


onerror:
    end()
    say_lost_images()
