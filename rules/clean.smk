# What `--delete-all-output` deletes: what the present configuration made in the cache and results
# folders, or all that this user made there, and nothing that somebody else put there. No job of
# these ever runs.
import snakemake.io


async def remove_whole(file, remove_non_empty_dir=False, only_local=False):
    """Snakemake itself would empty a folder file by file, and with all that is in it by then."""
    with without_traceback():
        all_made.remove(str(file))


if deletes:
    snakemake.io.remove = remove_whole

for number, paths in enumerate(all_made.paths.values() if deletes else []):

    rule:
        name:
            f"made_before_{number}"
        output:
            [directory(path) for path in paths],
        log:
            f"logs/made_before_{number}.log",
        shell:
            "false"
