# What `--delete-all-output` deletes: all that this config and earlier ones made in the cache
# and results folders, and nothing that somebody else put there. No job of these ever runs.
for number, folders in enumerate(made.values()):

    rule:
        name:
            f"made_before_{number}"
        output:
            [directory(folder) for folder in folders],
        log:
            f"logs/made_before_{number}.log",
        shell:
            "false"
