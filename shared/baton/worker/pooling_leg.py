"""PoolingLeg: compute a prompt and answer what the model pools of it. The only leg of a worker whose model pools."""

from __future__ import annotations

from baton.engine.engine import Engine, TokenOutput
from baton.errors import UnsupportedFeature
from baton.messages import Leg as LegName
from baton.messages import Pool
from baton.pooling import check_pooled_prompt
from baton.worker.runs import Outbox, Run, Runs


class PoolingLeg:
    """Prompts that end with a vector. Nothing is held behind the answer, and any worker gives the same one."""

    name: LegName = "pool"

    def __init__(self, engine: Engine, runs: Runs, outbox: Outbox) -> None:
        self._engine = engine
        self._runs = runs
        self._outbox = outbox

    def begin(self, run: Run) -> None:
        """Queue the prompt."""
        asked, facts = run.asked, self._engine.pooling
        if not isinstance(asked, Pool) or facts is None:
            raise UnsupportedFeature("this worker's model does not generate", field="model")
        facts.check_task(asked.params.task)
        facts.check_dimensions(asked.params.dimensions)
        check_pooled_prompt(asked.prompt, self._engine.model.spec.vocab_size, self._engine.max_model_len)
        self._engine.pool_prompt(
            run.engine_id, asked.prompt, asked.params, priority=asked.priority, salt=asked.salt, share=asked.share
        )

    def take(self, run: Run, output: TokenOutput) -> None:
        """Answer; the engine has let go of it already."""
        assert output.pooled is not None
        self._outbox.pooled(run, output, output.pooled)
        self._runs.close(run)

    def stop(self, run: Run) -> None:
        """Give it up wherever it stands."""
        self._engine.abort(run.engine_id)
        self._runs.close(run)

    def stop_choice(self, run: Run, choice: int) -> None:
        """Nothing to do: there is one choice."""

    def advance(self) -> bool:
        """Nothing happens beside the engine's steps."""
        return False

    def stranded_blocks(self) -> int:
        """None are held for others."""
        return 0
