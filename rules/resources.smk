"""What jobs ask a cluster for: memory, minutes and CPUs. Jobs of this machine wait for CPUs alone."""

from tokencache.plan import resources
from tokencache.workflow import slurm


def tokenize_needs(wildcards):
    return resources.tokenizing(plan, wildcards.batch)


def train_tokenizer_needs(wildcards):
    return resources.training_tokenizer(plan, tokenizer_path(plan.cache, wildcards.tokenizer))


def pack_needs(wildcards):
    return resources.packing(plan, f"{plan.cache}/{wildcards.cache}")


def part_needs(wildcards):
    return resources.packing(plan, plan.cache_of(f"{plan.cache}/{wildcards.part}"))


def train_needs(wildcards):
    return resources.training(plan, f"{plan.results}/{wildcards.run}")


def of(needs, what):
    """One of the things that a job needs; more of it with each attempt."""

    def asked(wildcards, attempt):
        return getattr(needs(wildcards).of_attempt(attempt), what)

    return asked


def ask_about_jobs():
    """Have SLURM asked about jobs in a way that it can answer, and tell them of their end."""
    given = workflow.executor_settings
    if not hasattr(given, "status_command"):
        return
    import snakemake_executor_plugin_slurm as plugin

    polling = slurm.polling(given.init_seconds_before_status_checks)
    given.status_command = polling.command
    executor = plugin.Executor
    executor.next_seconds_between_status_checks = slurm.at_most(
        executor.next_seconds_between_status_checks, polling.longest
    )
    # Or the plugin takes sacct, records or none, whenever SLURM does not answer.
    plugin.is_query_tool_available = lambda tool: tool == given.status_command
    plugin.query_job_status = slurm.without_lost_jobs(plugin.query_job_status)
    plugin.get_submit_command = slurm.with_a_warning(plugin.get_submit_command)
