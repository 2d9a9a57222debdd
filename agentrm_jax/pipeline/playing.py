"""The stages that play: experts, exploration, and the labels that its trees give."""

from __future__ import annotations

import pathlib

import numpy as np

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.states import write_paths
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.data.trees import FILE, TreeStore
from agentrm_jax.engine.engine import Engine
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.evaluate.harness import ROLLOUTS, read_rollouts, stored_rollouts
from agentrm_jax.pipeline.workspace import DATASET, Run, Summary
from agentrm_jax.runtime.processes import from_all, from_first, gather, is_first, own_share
from agentrm_jax.runtime.progress import progress
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.stage_files import KEY, stage_ended, stage_files
from agentrm_jax.search.explore import Explorer
from agentrm_jax.search.labels import labelled_paths
from agentrm_jax.search.rollouts import Rollout, rollouts


def experts(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Asks the experts for trajectories, or takes imported ones; writes those that succeed."""
    if run.config.experts.imported:
        taken = list(run.imported_trajectories())
        found, asked = [t for t in taken if t.success], len(taken)
        if not found:
            raise UserError("holds no trajectory that succeeds", field="experts.imported")
    else:
        tasks, _ = run.train_tasks
        asked = len(tasks)
        with progress("experts", asked) as bar:
            found = list(expert_trajectories(run.pool, tasks, bar.advance))
    write_trajectories(directory / DATASET, found)
    return {
        "trajectories": len(found),
        "tasks": asked,
        "success_rate": len(found) / asked,
        "replies_without_action": sum(not s.action for t in found for s in t.steps),
        "steps_mean": float(np.mean([len(t.steps) for t in found])),
    }


def explore(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Grows a search tree for each task (paper section 3.2)."""
    config = run.config.explore
    tasks = own_share(run.train_tasks[1])
    model = run.acting_policy()
    engine = Engine.of(model.params, model.config, run.config.engine, mesh=run.engine_mesh)
    branches = (config.search.expansion_width, 1)  # trees that expand, and those that roll out
    agent = Agent(
        engine, model.tokenizer, run.prompt_of, config.sampling, run.config.seed, branches
    )
    agent.warm_up()
    gather(directory / FILE)
    stored = TreeStore.read(directory)
    store = TreeStore(directory)
    total = len(tasks) * config.search.num_iterations
    own = (stored[task.task_id] for task in tasks if task.task_id in stored)
    done = sum(len(tree.iterations) for tree in own)
    with progress("explore", total, done=done, shown=is_first()) as bar:

        def on_iteration() -> None:
            bar.advance()
            stage.tick()

        Explorer(agent, run.pool, store, config.search, on_iteration).run(tasks, stored)
    store.close()
    gather(directory / FILE)
    return {
        **from_first(lambda: _tree_summary(directory)),
        "tokens_decoded": sum(from_all(engine.usage.decoded)),  # since this start, as what follows
        "tokens_read": sum(from_all(engine.usage.read)),
        "truncated_steps": sum(from_all(agent.truncated_steps)),
        KEY: from_first(lambda: stage_files(directory)),
    }


def _tree_summary(directory: pathlib.Path) -> Summary:
    trees = list(TreeStore.read(directory).values())
    iterations = [iteration for tree in trees for iteration in tree.iterations]
    visits = np.concatenate([np.zeros(0), *(tree.backed_up()[0] for tree in trees)])
    return {
        "trees": len(trees),
        "failed_trees": sum(tree.error is not None for tree in trees),
        "failed_candidates": sum(len(tree.failures) for tree in trees),
        "iterations": len(iterations),
        "env_steps": sum(tree.num_nodes - 1 for tree in trees),
        "invalid_actions": sum(
            not node.step.transition.valid for i in iterations for node in i.nodes
        ),
        "replies_without_action": sum(not node.step.action for i in iterations for node in i.nodes),
        "states_visited": int(np.sum(visits > 0)),
        "states_with_3_visits": int(np.sum(visits >= 3)),
        "mean_outcome": float(np.mean([i.outcome for i in iterations])) if iterations else None,
    }


def sample(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Runs the policy to the end several times on each task that `explore` would search."""
    config = run.config.sample
    tasks = own_share(run.train_tasks[1])
    model = run.acting_policy()
    engine = Engine.of(model.params, model.config, run.config.engine, mesh=run.engine_mesh)
    agent = Agent(engine, model.tokenizer, run.prompt_of, config.sampling, run.config.seed)
    episodes = [(task, number) for task in tasks for number in range(config.num_samples)]
    with progress("sample", len(episodes), shown=is_first()) as bar:

        def on_rollout() -> None:
            bar.advance()
            stage.tick()

        stored_rollouts(
            directory / ROLLOUTS,
            episodes,
            lambda missing: rollouts(agent, run.pool, missing, slots=config.slots),
            on_rollout,
        )
    return {
        **from_first(lambda: _sample_summary(directory / ROLLOUTS)),
        "tokens_decoded": sum(from_all(engine.usage.decoded)),
        "tokens_read": sum(from_all(engine.usage.read)),
        KEY: from_first(lambda: stage_files(directory)),
    }


def _sample_summary(path: pathlib.Path) -> Summary:
    found = list(read_rollouts(path))
    sound = [rollout.trajectory for rollout in found if rollout.error is None]
    if not sound:
        raise UserError(f"sample: every environment failed, the first with: {found[0].error}")
    return {
        "trajectories": len(sound),
        "errors": len(found) - len(sound),
        "failed_candidates": sum(rollout.failed_candidates for rollout in found),
        "replies_without_action": sum(rollout.replies_without_action for rollout in found),
        "mean_outcome": float(np.mean([trajectory.outcome for trajectory in sound])),
    }


def sampled_trajectories(run: Run) -> list[list[Trajectory]]:
    """What `sample` left: the trajectories of each task whose environment did not break."""
    groups: dict[str, list[Rollout]] = {}
    folder = run.directory / "samples"
    for rollout in read_rollouts(folder / ROLLOUTS, finished=stage_ended(folder)):
        if rollout.error is None:
            groups.setdefault(rollout.trajectory.task.task_id, []).append(rollout)
    # In the order of tasks and samples, not in that in which they ended.
    return [
        [r.trajectory for r in sorted(groups[task_id], key=lambda r: r.sample)]
        for task_id in sorted(groups)
    ]


def label(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Takes the values of states from the stored trees (paper section 3.2)."""
    folder = run.directory / "trees"
    stored = TreeStore.read(folder, finished=stage_ended(folder)).values()
    trees = sorted(stored, key=lambda tree: tree.task.task_id)  # not as environments were ready
    paths = [path for tree in trees for path in labelled_paths(tree, run.config.label)]
    if not paths:
        failed = [tree.error for tree in trees if tree.error is not None]
        reason = (
            f"{len(failed)} of {len(trees)} trees failed, the first with: {failed[0]}"
            if failed
            else f"no state was visited label.min_visits = {run.config.label.min_visits} times"
        )
        raise UserError(f"label: no state has a label; {reason}")
    write_paths(directory / DATASET, paths)
    values = np.array([v for path in paths for v in path.values])
    weights = np.array([w for path in paths for w in path.weights])
    return {
        "paths": len(paths),
        "states": int(np.sum(weights > 0)),
        "states_per_tree": float(np.sum(weights > 0) / len(trees)),
        "value_mean": float(np.average(values, weights=weights)),
    }
