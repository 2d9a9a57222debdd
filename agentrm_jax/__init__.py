"""AgentRM in JAX: tree search and reward models that steer language-model agents at test time.

The names below are imported when they are first used, so that `import agentrm_jax` is fast and
imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrm_jax.agent.function import FunctionPolicy
    from agentrm_jax.agent.server import ServerPolicy
    from agentrm_jax.clients.connection import ServedModelConfig
    from agentrm_jax.core.errors import UserError
    from agentrm_jax.core.protocols import (
        Environment,
        EnvironmentFailure,
        Policy,
        Proposal,
        Scorer,
        propose,
    )
    from agentrm_jax.core.records import Prompt, Step, Task, Trajectory, Transition
    from agentrm_jax.data.states import LabelledTree
    from agentrm_jax.data.trees import TreeRecord
    from agentrm_jax.engine.config import EngineConfig
    from agentrm_jax.engine.programs.sampling import Sampling
    from agentrm_jax.envs.outside.agentgym import agentgym_tasks
    from agentrm_jax.envs.outside.gymnasium_env import GymnasiumEnv
    from agentrm_jax.envs.outside.returns import RewardRule
    from agentrm_jax.envs.pool import EnvPool
    from agentrm_jax.evaluation.compare import MethodComparison, compare, evaluate
    from agentrm_jax.model.heads import MSE, HLGauss, Quantile, ValueHead, register_head
    from agentrm_jax.pipeline.export_model import export_model
    from agentrm_jax.pipeline.model_config import ModelConfig
    from agentrm_jax.pipeline.policies import ModelPolicy
    from agentrm_jax.pipeline.policy_kinds import PolicyKind, PolicyOptions, register_policy
    from agentrm_jax.pipeline.reward_kinds import RewardKind, register_reward_kind
    from agentrm_jax.pipeline.reward_model import RewardModel, Scored
    from agentrm_jax.pipeline.train_reward_model import train_reward_model
    from agentrm_jax.pipeline.trajectory_files import read_trajectories
    from agentrm_jax.reward.ensemble import EnsembleScorer, EnsembleSettings
    from agentrm_jax.reward.function import FunctionScorer
    from agentrm_jax.reward.places import Place, placed
    from agentrm_jax.search.beam import beam_search
    from agentrm_jax.search.best_of_n import BestOfN, best_of_n
    from agentrm_jax.search.explore import explore
    from agentrm_jax.search.labels import LabelConfig, label, label_trajectories
    from agentrm_jax.search.methods import Method, register_method
    from agentrm_jax.search.rollouts import Rollout, rollouts
    from agentrm_jax.search.selection import PUCT, UCB, Children, register_selection_rule
    from agentrm_jax.train.fit import FitConfig
    from agentrm_jax.train.optimizer import OptimizerConfig

_MODULES = {
    "agent.function": ("FunctionPolicy",),
    "agent.server": ("ServerPolicy",),
    "core.errors": ("UserError",),
    "core.protocols": (
        "Environment",
        "EnvironmentFailure",
        "Policy",
        "Proposal",
        "Scorer",
        "propose",
    ),
    "core.records": (
        "Prompt",
        "Step",
        "Task",
        "Trajectory",
        "Transition",
    ),
    "data.states": ("LabelledTree",),
    "data.trees": ("TreeRecord",),
    "engine.config": ("EngineConfig",),
    "engine.programs.sampling": ("Sampling",),
    "envs.outside.agentgym": ("agentgym_tasks",),
    "envs.outside.gymnasium_env": ("GymnasiumEnv",),
    "envs.outside.returns": ("RewardRule",),
    "envs.pool": ("EnvPool",),
    "evaluation.compare": (
        "MethodComparison",
        "compare",
        "evaluate",
    ),
    "model.heads": (
        "HLGauss",
        "MSE",
        "Quantile",
        "ValueHead",
        "register_head",
    ),
    "pipeline.model_config": ("ModelConfig",),
    "pipeline.export_model": ("export_model",),
    "pipeline.policies": ("ModelPolicy",),
    "pipeline.policy_kinds": (
        "PolicyKind",
        "PolicyOptions",
        "register_policy",
    ),
    "pipeline.reward_kinds": (
        "RewardKind",
        "register_reward_kind",
    ),
    "pipeline.reward_model": (
        "RewardModel",
        "Scored",
    ),
    "pipeline.train_reward_model": ("train_reward_model",),
    "pipeline.trajectory_files": ("read_trajectories",),
    "reward.ensemble": (
        "EnsembleScorer",
        "EnsembleSettings",
    ),
    "reward.function": ("FunctionScorer",),
    "reward.places": (
        "Place",
        "placed",
    ),
    "search.beam": ("beam_search",),
    "search.best_of_n": (
        "BestOfN",
        "best_of_n",
    ),
    "search.explore": ("explore",),
    "search.labels": (
        "LabelConfig",
        "label",
        "label_trajectories",
    ),
    "search.methods": (
        "Method",
        "register_method",
    ),
    "search.rollouts": (
        "Rollout",
        "rollouts",
    ),
    "search.selection": (
        "Children",
        "PUCT",
        "UCB",
        "register_selection_rule",
    ),
    "clients.connection": ("ServedModelConfig",),
    "train.fit": ("FitConfig",),
    "train.optimizer": ("OptimizerConfig",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "MSE",
    "PUCT",
    "UCB",
    "BestOfN",
    "Children",
    "EngineConfig",
    "EnsembleScorer",
    "EnsembleSettings",
    "EnvPool",
    "Environment",
    "EnvironmentFailure",
    "FitConfig",
    "FunctionPolicy",
    "FunctionScorer",
    "GymnasiumEnv",
    "HLGauss",
    "LabelConfig",
    "LabelledTree",
    "Method",
    "MethodComparison",
    "ModelConfig",
    "ModelPolicy",
    "OptimizerConfig",
    "Place",
    "Policy",
    "PolicyKind",
    "PolicyOptions",
    "Prompt",
    "Proposal",
    "Quantile",
    "RewardKind",
    "RewardModel",
    "RewardRule",
    "Rollout",
    "Sampling",
    "Scored",
    "Scorer",
    "ServedModelConfig",
    "ServerPolicy",
    "Step",
    "Task",
    "Trajectory",
    "Transition",
    "TreeRecord",
    "UserError",
    "ValueHead",
    "agentgym_tasks",
    "beam_search",
    "best_of_n",
    "compare",
    "evaluate",
    "explore",
    "export_model",
    "label",
    "label_trajectories",
    "placed",
    "propose",
    "read_trajectories",
    "register_head",
    "register_method",
    "register_policy",
    "register_reward_kind",
    "register_selection_rule",
    "rollouts",
    "train_reward_model",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
