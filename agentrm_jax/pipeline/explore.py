"""Stage `explore`: grows a search tree for each task (paper section 3.2)."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from typing import TypedDict

import numpy as np

from agentrm_jax.agent.agent import Agent
from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import FILE, TreeStore
from agentrm_jax.pipeline.acting import AgentName, open_policy
from agentrm_jax.pipeline.shared_tasks import join_leftovers
from agentrm_jax.pipeline.shared_trees import explore_shared
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.stage_files import FileRecord, stage_files
from agentrm_jax.search.explore import Explorer
from agentrm_jax.search.tree_sinks import TreeSink


class TreeSummary(TypedDict):
    """Counts over all trees.

    Attributes:
      trees: Number of trees.
      failed_trees: Trees that ended early: their root was closed, or failures used up their nodes.
      failed_candidates: Turns whose environment failed.
      iterations: Iterations of all trees.
      env_steps: Nodes that were attached, each by a step of the environment.
      invalid_actions: Nodes whose action the environment did not understand or refused.
      replies_without_action: Nodes whose reply has no action.
      states_visited: States with at least one visit.
      states_with_3_visits: States with at least three visits.
      mean_outcome: Mean return of the rollouts; None if there was none.
    """

    trees: int
    failed_trees: int
    failed_candidates: int
    iterations: int
    env_steps: int
    invalid_actions: int
    replies_without_action: int
    states_visited: int
    states_with_3_visits: int
    mean_outcome: float | None


class ExploreSummary(TreeSummary, AgentName):
    """The summary of stage `explore`; tokens are those of the model that acts.

    Attributes:
      tokens_decoded: Tokens that were decoded since the last start.
      tokens_read: Tokens that were read since the last start.
      truncated_steps: Steps that did not fit into the context since the last start.
      files: The JSON files of the stage, by name.
    """

    tokens_decoded: int
    tokens_read: int
    truncated_steps: int
    files: dict[str, FileRecord]


def explore(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> ExploreSummary:
    """Grows the trees; several processes take the tasks one by one."""
    config, tasks = workspace.config.explore, workspace.tasks.explored
    policy = open_policy(workspace)
    stage.activity.counts = policy.counts
    search = config.search
    with stage.waiting("compile"):
        agent = policy.agent(config.sampling, search.branches, concurrency=search.concurrency)
    join_leftovers(directory / FILE, directory, stage)
    stored = TreeStore.read(directory)
    total = len(tasks) * search.num_iterations
    done = sum(len(stored[t.task_id].iterations) for t in tasks if t.task_id in stored)
    with stage.progress("explore", total, done=done) as bar:

        def on_iteration() -> None:
            bar.advance()
            if stage.activity.done < total:
                stage.check_budget()

        def explorer(sink: TreeSink) -> Explorer:
            return Explorer(agent, workspace.pool, sink, search, on_iteration)

        if stage.group.shared:
            explore_shared(tasks, stored, explorer, directory, stage)
        else:
            with contextlib.closing(TreeStore(directory)) as store:
                explorer(store).run(tasks, stored)
    truncated = agent.truncated_steps if isinstance(agent, Agent) else 0
    if isinstance(agent, ServerPolicy):
        truncated = agent.usage.truncated_steps
    counts = stage.group.total(
        {
            "tokens_decoded": policy.tokens_decoded,
            "tokens_read": policy.tokens_read,
            "truncated_steps": truncated,
        }
    )
    summary: TreeSummary = stage.group.once("summary", lambda: _tree_summary(directory))
    return {
        **summary,
        "tokens_decoded": counts["tokens_decoded"],
        "tokens_read": counts["tokens_read"],
        "truncated_steps": counts["truncated_steps"],
        **policy.name,
        "files": stage.group.once("files", lambda: stage_files(directory)),
    }


def _tree_summary(directory: pathlib.Path) -> TreeSummary:
    trees = list(TreeStore.read(directory).values())
    iterations = [iteration for tree in trees for iteration in tree.iterations]
    returns = [backup.outcome for tree in trees for backup in tree.backups]
    visits = np.concatenate([np.zeros(0), *(tree.backed_up()[0] for tree in trees)])
    errors = [tree.error for tree in trees if tree.error is not None]
    if errors:
        first = f"{len(errors)} of {len(trees)} trees failed, the first with: {errors[0]}"
        print(f"agentrm: warning: {printable(first)}", file=sys.stderr, flush=True)
    return {
        "trees": len(trees),
        "failed_trees": len(errors),
        "failed_candidates": sum(len(tree.failures) for tree in trees),
        "iterations": len(iterations),
        "env_steps": sum(tree.num_nodes - 1 for tree in trees),
        "invalid_actions": sum(
            not node.step.transition.valid for i in iterations for node in i.nodes
        ),
        "replies_without_action": sum(not node.step.action for i in iterations for node in i.nodes),
        "states_visited": int(np.sum(visits > 0)),
        "states_with_3_visits": int(np.sum(visits >= 3)),
        "mean_outcome": float(np.mean(returns)) if returns else None,
    }
