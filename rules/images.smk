# The images that jobs run in with `--software-deployment-method apptainer`. What jobs wait for
# is built first by itself; `snakemake images` builds all beforehand.
localrules:
    build_image,


rule build_image:
    output:
        "{image}.sif",
    log:
        "logs/{image}.log",
    wildcard_constraints:
        image=one_of(image(name).removesuffix(".sif") for name in images.NAMES),
    container:
        no_image
    params:
        base=settings.containers.base,
        checkout=CHECKOUT,
    shell:
        "python -m tokencache.workflow.images --checkout {params.checkout:q} --base {params.base:q} {output:q}"
        " 2>&1 | tee {log:q}"
