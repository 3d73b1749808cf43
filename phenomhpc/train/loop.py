"""The training loop: step, log, checkpoint, stop when asked.

What holds when killed at any moment: the newest committed checkpoint is whole, the next start resumes from it unasked, and
(fp32 on CPUs, same world, same number of threads) every later step's loss and the final weights are bit for bit those of
an undisturbed run: the order of the data, masks, stochastic depth and learning rates are functions of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from phenomhpc.config.training import PretrainConfig
from phenomhpc.crops.ledger import merged
from phenomhpc.crops.mending import Replaced
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.models.blocks import compile_blocks, is_compiled, recompute_blocks
from phenomhpc.models.checkpoint import newest_committed, read_meta, step_folder
from phenomhpc.models.mae import build_mae
from phenomhpc.models.standardise import Standardiser
from phenomhpc.progress import Stage
from phenomhpc.runs import TaskContext
from phenomhpc.runs.heartbeat import START, STEP, beat
from phenomhpc.train.begin import begin_from
from phenomhpc.train.checkpoints import Checkpoints
from phenomhpc.train.data import CropSource
from phenomhpc.train.determinism import repeatable
from phenomhpc.train.ema import Average
from phenomhpc.train.faults import Skips, Spikes, usual_before
from phenomhpc.train.feed import feed_for
from phenomhpc.train.goodput import Meter
from phenomhpc.train.metrics import MetricsLog, StepRow
from phenomhpc.train.optim import make_optimiser, one_cycle_lr
from phenomhpc.train.probe import LinearProbe, wells_of
from phenomhpc.train.ranks import Ranks, joined
from phenomhpc.train.shards import num_shards, shard
from phenomhpc.train.state import Replica, TrainState, replicate
from phenomhpc.train.step import StepSettings, run_step
from phenomhpc.train.steplog import StepLog
from phenomhpc.train.stragglers import OwnClock, Stragglers
from phenomhpc.train.tracking import Tracker
from phenomhpc.train.validation import Draw, Validation, require_validation

# Metrics become a file at every checkpoint and at every so many logged intervals.
FLUSH_INTERVALS = 10


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Steps done in all, the last committed checkpoint, and the last step's loss (None: nothing was left to do)."""

    steps: int
    checkpoint: Path
    loss: float | None


def train(config: PretrainConfig, ctx: TaskContext, draw: Draw | None = None) -> TrainResult:
    """One rank's part of a pretraining run, from its newest committed checkpoint to its last step.

    draw: makes the pictures of validations; None for none.

    The rank comes from torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*); without it there is one rank.
    Raises StopRequested after a checkpoint when the context's stop file is seen at a step boundary, FencedError when a
    newer attempt has replaced this one, NoCheckpointError when committed checkpoints exist and none is readable.
    """
    beat(START)
    require_trainable(config)
    if config.threads_per_rank is not None:
        torch.set_num_threads(config.threads_per_rank)
    with repeatable(config.deterministic), joined(config.device) as ranks:
        digest = ranks.on_first(lambda: bound_snapshot(config, ctx))
        config = config.model_copy(update={"snapshot": digest})
        return _Run.prepare(config, ctx, ranks, CropSource.open(config), draw).to_the_end()


def require_trainable(config: PretrainConfig) -> None:
    """Raise UsageError for settings that no training loop takes, on whatever machine."""
    if config.precision == "fp16":
        raise UsageError("precision=fp16: for embedding only, its gradients underflow; pretrain with fp32 or bf16")


def bound_snapshot(config: PretrainConfig, ctx: TaskContext) -> str:
    """Digests of the snapshots this run reads: as configured, else those its newest checkpoint was made from, else the
    stores' newest.  A store may grow between two attempts; the order of the data may not."""
    if config.snapshot is None:
        newest = newest_committed(ctx.paths.checkpoints, lambda text: None)
        if newest is not None:
            return read_meta(newest).snapshot
    return CropSource.open(config).corpus.digest


@dataclass(kw_only=True)
class _Run:
    """One rank's run while it lasts."""

    config: PretrainConfig
    ctx: TaskContext
    ranks: Ranks
    source: CropSource
    state: TrainState
    checkpoints: Checkpoints
    log: StepLog
    validation: Validation
    probe: LinearProbe
    skips: Skips
    spikes: Spikes

    @classmethod
    def prepare(
        cls, config: PretrainConfig, ctx: TaskContext, ranks: Ranks, source: CropSource, draw: Draw | None
    ) -> _Run:
        require_validation(config, source)
        shards = num_shards(config.sharding, ranks)
        compiled = is_compiled(config.compile, ranks.device, deterministic=config.deterministic)
        model = build_mae(source.num_channels, seed=config.seed, **config.model.model_dump())
        if shards == 1:
            model = model.to(ranks.device)
        if config.activation_checkpointing:
            recompute_blocks(model)
        if compiled:
            compile_blocks(model)
        shard(model, ranks, config.sharding, bf16_gradients=config.precision == "bf16")
        state = TrainState(
            model=model.train(),
            optimiser=make_optimiser(model, config.optim),
            ema=Average.of(model, config.optim.ema),
        )
        checkpoints = Checkpoints(
            ctx=ctx,
            ranks=ranks,
            config=config.checkpoint,
            describe=lambda state, weights: replace(
                source.describe(state, weights, ranks.world), init_from=state.init_from
            ),
        )
        if checkpoints.resume(state, ctx.progress.say) is None and config.init_from is not None:
            begin_from(config, state, source.corpus.channels, ranks, ctx)
        tracker = Tracker.of_run(config, ctx, state.step) if ranks.is_first else Tracker()
        meter = Meter.of_run(config, ctx.paths, ranks, num_channels=source.num_channels, step=state.step)
        return cls(
            config=config,
            ctx=ctx,
            ranks=ranks,
            source=source,
            state=state,
            checkpoints=checkpoints,
            log=StepLog(
                config=config,
                ranks=ranks,
                metrics=MetricsLog(ctx),
                meter=meter,
                crop_bytes=source.crop_bytes,
                tracker=tracker,
                stragglers=Stragglers.of_run(config.faults, config.log_every_steps, ctx, ranks),
                clock=OwnClock(ranks.device),
            ),
            validation=Validation(config=config, ctx=ctx, ranks=ranks, source=source, draw=draw, tracker=tracker),
            probe=LinearProbe(
                config=config, ctx=ctx, ranks=ranks, source=source, wells=wells_of(config, source), tracker=tracker
            ),
            skips=Skips(config=config.faults),
            spikes=ranks.on_first(lambda: usual_before(state.step, config.faults, ctx.paths.metrics)),
        )

    def to_the_end(self) -> TrainResult:
        steps = self.config.optim.steps
        if self.state.step < steps:
            if self.ranks.is_first:
                self._tell_start()
            with self.ctx.progress.stage("pretrain", steps, "steps") as stage:
                if self.state.step:
                    stage.advance(self.state.step)
                with self.log.tracker, self.checkpoints:
                    self._steps(stage)
        return TrainResult(steps=self.state.step, checkpoint=self.checkpoints.finish(), loss=self.log.last_loss)

    def _tell_start(self) -> None:
        origin = f"resuming after step {self.state.step}" if self.state.step else "starting"
        self.ctx.progress.say(f"{origin} on {self.ranks.world} rank(s), device {self.ranks.device.type}")
        if self.state.step:
            self.ctx.events.emit("resumed", step=self.state.step, world_size=self.ranks.world)

    def _tell(self, replaced: Replaced) -> None:
        """Of a field that cannot be read: in the log of the rank that met it, and in the run's events."""
        names = self.source.corpus.name(replaced.field_no), self.source.corpus.name(replaced.by)
        self.ctx.progress.say("damaged: {} is replaced by {} ({})".format(*names, replaced.reason))
        self.ctx.events.emit("damaged", rank=self.ranks.rank, field=names[0], by=names[1], reason=replaced.reason)

    def _steps(self, stage: Stage) -> None:
        config, optim = self.config, self.config.optim
        settings = StepSettings(
            global_batch=optim.global_batch,
            standardise=Standardiser(self.source.scale(self.ranks.device)),
            precision=config.precision,
            clip_grad_norm=optim.clip_grad_norm,
        )
        for watcher in (self.validation, self.probe):
            if watcher.missing(self.state.step):  # of the untrained model, or a stop came before it
                watcher.run(self.state)
        bf16 = config.precision == "bf16"
        replica = replicate(
            self.state.model,
            self.ranks,
            optim.micro_batch,
            bf16_gradients=bf16,
            shards=num_shards(config.sharding, self.ranks),
        )
        replica = self.log.clock.watch(replica)
        while self.state.step < optim.steps:
            self._until_rolled_back(stage, replica, settings)

    def _until_rolled_back(self, stage: Stage, replica: Replica, settings: StepSettings) -> None:
        """Steps to the last one, or to one after which the run went back: the order of the data is another one then."""
        optim, patches = self.config.optim, self.state.model.num_patches
        tell, say, skip = self._tell, self.ctx.progress.say, self.state.skip_ledger
        feed = feed_for(self.ranks.device, say)
        with (
            self.source.loader(
                self.ranks, self.state.step, patches, hold_steps=feed.hold_steps, tell=tell, say=say, skip=skip
            ) as loader,
            feed,
        ):
            while self.state.step < optim.steps and self.state.skip_ledger == skip:
                self.log.start()
                feed.free_buffers()
                batch = next(loader)
                self.log.clock.ready()
                lr = one_cycle_lr(
                    self.state.step, steps=optim.steps, peak_lr=optim.peak_lr, warmup_fraction=optim.warmup_fraction
                )
                micro = feed.micro(batch.micro)
                sums = run_step(self.state, replica, micro, len(batch.micro), lr, settings, self.ranks)
                self.log.add(batch, sums, lr)
                beat(STEP, self.state.step)
                self._boundary(stage)

    def _boundary(self, stage: Stage) -> None:
        """Between two steps: log, commit, leave when asked."""
        done, config = self.state.step, self.config
        stop, failed = self.ranks.any_of(self.ctx.stop_requested(), self.checkpoints.failed)
        if failed:
            self.checkpoints.wait()
        due = done % config.checkpoint.every_steps == 0 or done == config.optim.steps or stop
        interval = config.log_every_steps
        if due or done % interval == 0:
            settled = self.log.settle(flush=due or done % (interval * FLUSH_INTERVALS) == 0)
            if self._look_for_faults(settled):
                stage.advance(1 + self.state.step - done)
                return
        figures = self.log.figures() if done % interval == 0 or due else {}
        # Before the checkpoint: a start that goes on from it does not come by here again.
        for watcher in (self.validation, self.probe):
            if watcher.due(done) and not stop:
                watcher.run(self.state)
        watched = {"val_loss": self.validation.last_loss, "probe": self.probe.last_accuracy}
        figures |= {name: value for name, value in watched.items() if value is not None and figures}
        if due:
            beat("checkpoint", done)
            self.checkpoints.begin(self.state)
            if done == config.optim.steps:
                self.checkpoints.finish()
            beat(STEP, done)
        stage.advance(1, **figures)
        if stop and done < config.optim.steps:
            beat("checkpoint", done)
            newest = self.checkpoints.wait()
            told = "no checkpoint is committed yet" if newest is None else f"the newest checkpoint is {newest.name}"
            if newest is not None and newest.name == step_folder(newest.parent, done).name:
                told = "its checkpoint is committed"
            raise StopRequested(f"run {self.ctx.paths.id}: stopped as asked after step {done}; {told}")

    def _look_for_faults(self, rows: list[StepRow]) -> bool:
        """Tell of steps that changed nothing; go back where a loss leaps.  Did the run go back?"""
        skipped = self.skips.count((row.step, row.skipped) for row in rows)
        if skipped and self.ranks.is_first:
            self.ctx.progress.say(f"steps without a finite gradient: {skipped} ({self.skips.total} in this attempt)")
            self.ctx.events.emit("skipped", steps=skipped, total=self.skips.total)
        spikes = self.spikes.look((row.step, row.loss) for row in rows)
        if not spikes:
            return False
        ledger = merged(self._samples(step) for step in spikes)
        losses = {row.step: row.loss for row in rows}
        reached = self.state.step
        if self.spikes.num_rollbacks == self.config.faults.max_rollbacks:
            raise WorkError(
                f"run {self.ctx.paths.id}: the loss leaps again at step {spikes[0]} ({losses[spikes[0]]:.4g}) after "
                f"{self.spikes.num_rollbacks} rollbacks; lower optim.peak_lr, or raise faults.spike_mads"
            )
        beat("checkpoint", reached)
        back_at = self.checkpoints.roll_back(self.state, ledger, self.ctx.progress.say)
        beat(STEP, self.state.step)
        if self.ranks.is_first:
            where = "no checkpoint to go back to" if back_at is None else f"back to {back_at.name}, without their crops"
            self.ctx.progress.say(f"the loss leaps at step(s) {spikes} ({losses[spikes[0]]:.4g}): {where}")
            told = {"steps": spikes, "losses": [losses[step] for step in spikes], "samples": ledger}
            self.ctx.events.emit("spike", **told)
            if back_at is not None:
                self.ctx.events.emit(
                    "rollback", step=self.state.step, reached=reached, skip_ledger=self.state.skip_ledger
                )
        if back_at is None:
            return False
        num_rollbacks = self.spikes.num_rollbacks + 1
        self.spikes = self.ranks.on_first(
            lambda: usual_before(self.state.step, self.config.faults, self.ctx.paths.metrics)
        )
        self.spikes.num_rollbacks = num_rollbacks
        return True

    def _samples(self, step: int) -> tuple[int, int]:
        """The samples of a step, [first, last); with what was left out between them."""
        first, last = (self.source.first_index(at, self.state.skip_ledger) for at in (step, step + 1))
        return first, last
