"""A run's records in MLflow, where config.yaml asks for it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..base.credentials import hidden, hidden_in
from ..errors import UserError
from .metrics import say

KEY_TAG = "tokencache.key"
ATTEMPTS = 5  # two runs may make the tables of a new database at the same time
INSTALL = "pip install mlflow-skinny sqlalchemy alembic"


class Tracking(TrainerCallback):
    """Writes each record to the MLflow run of a run's key, which it goes on with or makes.

    settings: `training.mlflow`; database: the file that takes the records where it names
    no tracking_uri. Raises UserError where MLflow is not installed or can't be reached.
    What fails later is said once, and the training goes on without it.
    """

    def __init__(
        self, settings: dict[str, Any], run: dict[str, Any], database: Path, about: dict[str, Any]
    ) -> None:
        uri = settings["tracking_uri"] or f"sqlite:///{database.absolute()}"
        self._uri = uri
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
        except ImportError as error:
            raise UserError(
                f"training.mlflow: MLflow is not installed here ({error}); `{INSTALL}`, or leave "
                "mlflow out"
            ) from None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._client = MlflowClient(tracking_uri=uri)
                self._run = self._found(settings["experiment"], run, about)
                break
            except Exception as error:  # MLflow's own, SQLAlchemy's, requests', …
                if attempt == ATTEMPTS or isinstance(error, ImportError):
                    hint = f"; `{INSTALL}`" if isinstance(error, ImportError) else ""
                    raise UserError(
                        f"training.mlflow: {hidden(uri)} can't be used ({self._short(error)}){hint}"
                    ) from None
                time.sleep(attempt)
        self._works = True
        say(f"mlflow {hidden(uri)}, experiment {settings['experiment']}, run {run['key']}")

    def _found(self, experiment: str, run: dict[str, Any], about: dict[str, Any]) -> str:
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self._client.create_experiment(experiment)
        wanted = f"tags.`{KEY_TAG}` = '{run['key']}'"
        if found := self._client.search_runs([number], wanted, max_results=1):
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        made = self._client.create_run(number, run_name=run["key"], tags={KEY_TAG: run["key"]})
        params = [Param(name, str(value)) for name, value in about.items()]
        self._client.log_batch(made.info.run_id, params=params)
        return made.info.run_id

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {name: value for name, value in logs.items() if value is not None}
        step = numbers.pop("step")
        self._try(
            self._client.log_batch,
            self._run,
            metrics=[Metric(name, float(value), now, step) for name, value in numbers.items()],
        )

    def end(self, status: str) -> None:
        """FINISHED or FAILED, in MLflow's words."""
        self._try(self._client.set_terminated, self._run, status=status)

    def _try(self, function: Any, *words: Any, **more: Any) -> None:
        if not self._works:
            return
        try:
            function(*words, **more)
        except Exception as error:  # as above
            self._works = False
            say(
                f"WARNING: MLflow takes no more records ({self._short(error)}); "
                "metrics.jsonl has all"
            )

    def _short(self, error: Exception) -> str:
        said = hidden_in(str(error), self._uri)
        return " ".join(said.split())[:300] or type(error).__name__
