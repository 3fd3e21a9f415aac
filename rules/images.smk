# The images that jobs run in with `--software-deployment-method apptainer`. What jobs wait for
# is built first by itself; `snakemake images` builds all beforehand.
localrules:
    build_image,
    make_debian,


rule build_image:
    input:
        base_inputs,
    output:
        "{image}.sif",
    log:
        "logs/{image}.log",
    wildcard_constraints:
        image=one_of(image(name).removesuffix(".sif") for name in images.NAMES),
    container:
        no_image
    params:
        base=image_base(),
        checkout=CHECKOUT,
    shell:
        "python -m tokencache.images build --checkout {params.checkout} --base {params.base} {output}"
        " 2>&1 | tee {log}"


# Debian of this machine's own mirrors, where no registry of images can be reached.
rule make_debian:
    output:
        temp(directory(images.DEBIAN_FOLDER)),
    log:
        "logs/images/debian.log",
    container:
        no_image
    shell:
        "python -m tokencache.images debian {output} 2>&1 | tee {log}"
