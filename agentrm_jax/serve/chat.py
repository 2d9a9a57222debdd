"""An environment played in the terminal, with the reward model's scores next to each turn."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Prompt, Step, Task, Trajectory, Transition, Unanswered
from agentrm_jax.core.reply import parse_action
from agentrm_jax.envs.contract import Episode, admit_prompt, blaming, missing_of, reset
from agentrm_jax.pipeline.reward_model import open_conversation_model
from agentrm_jax.serve.conversations import conversation_of_messages, message_text
from agentrm_jax.serve.errors import PolicyRefused, RequestRefused
from agentrm_jax.serve.gateway import Candidate, GatewayRequest, TurnPolicy, choose
from agentrm_jax.serve.scoring import ConversationScorer, ScoreRequest, Scores
from agentrm_jax.serve.server import open_policy

Say = Callable[[str], None]
Read = Callable[[str], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """The settings of a game in the terminal.

    Attributes:
      reward_model: A run, a model folder or an exported directory.
      policy: The address of a server, a run or a model directory; empty: only the person plays.
      n: Candidates of each turn.
      auto: Whether the best candidate is always taken; needs a policy.
    """

    reward_model: str
    policy: str = ""
    n: int = 5
    auto: bool = False

    def __post_init__(self) -> None:
        if self.auto and not self.policy:
            raise UserError("--auto needs candidates: give --policy")


def chat(config: ChatConfig, family: EnvironmentFamily, task: Task, say: Say, read: Read) -> float:
    """Plays one episode.

    Args:
      config: The models.
      family: The environment.
      task: One of its tasks.
      say: Shows a text.
      read: Asks a question and returns a line; empty at the end of the input.

    Returns:
      The return of the episode.

    Raises:
      UserError: The environment or a model cannot be used.
    """
    if reason := missing_of(family):
        raise UserError(reason)
    scorer = ConversationScorer(*open_conversation_model(config.reward_model))
    policy = open_policy(config.policy) if config.policy else None
    with blaming(f"environment {family.name!r}, task {task.task_id!r}"):
        prompt = admit_prompt(family.prompt())
        episode, text = reset(family.create(), task)
    say(f"{prompt.instruction}\n\n[{task.task_id}: at most {task.max_steps} steps]\n\n{text}")
    game = _Game(config, scorer, policy, prompt, say, read)
    state = Trajectory(task=task, first_observation=text)
    with asyncio.Runner() as runner:
        try:
            runner.run(game.play(episode, state))
        finally:
            if policy is not None:
                runner.run(policy.close())
    return episode.total


@dataclasses.dataclass(frozen=True)
class _Game:
    config: ChatConfig
    scorer: ConversationScorer
    policy: TurnPolicy | None
    prompt: Prompt
    say: Say
    read: Read

    async def play(self, episode: Episode, state: Trajectory) -> None:
        """Plays until the episode is over or the person ends it."""
        before = await self._value(state)
        while not episode.done:
            candidates = await self._candidates(state)
            question = f"\n[step {episode.steps + 1}, score {episode.total:.2f}] > "
            reply = _reply(candidates, "" if self.config.auto else self.read(question))
            if not reply:
                return
            step = Step(reply=reply, action=parse_action(reply), transition=Unanswered())
            blind = await self._value(state.extended(step))
            with blaming(f"environment {state.task.environment!r}"):
                transition: Transition = episode.step(step.action)
            state = state.extended(dataclasses.replace(step, transition=transition))
            after = await self._value(state)
            self.say(transition.observation)
            self.say(
                f"[reward model: {before:.3f} before, {blind:.3f} after the action, "
                f"{after:.3f} after the answer]"
            )
            before = after
            if transition.done:
                self.say("solved" if transition.success else "over")

    async def _candidates(self, state: Trajectory) -> list[Candidate]:
        """Returns the policy's candidates, best first, and shows them with their scores."""
        if self.policy is None:
            return []
        body = {"messages": state.messages(self.prompt), "n": self.config.n}
        try:
            choice = await choose(self.policy, self._scores, GatewayRequest.of_body(body, 1))
        except PolicyRefused as error:
            content = error.content.decode(errors="replace")
            raise UserError(f"{error}: {content[:200]}") from None
        except RequestRefused as error:
            raise UserError(error.message) from None
        scored = [each for each in choice.candidates if each.score is not None]
        scored.sort(key=lambda each: -(each.score or 0.0))
        for number, each in enumerate(scored, 1):
            line = " / ".join(message_text(each.message).split("\n"))
            self.say(f"{number:3}. {each.score:7.3f}  {line}")
        return scored

    async def _value(self, state: Trajectory) -> float:
        conversation = conversation_of_messages(state.messages(self.prompt))
        [scores] = await self._scores([ScoreRequest(conversation=conversation)])
        return scores.values[0]

    async def _scores(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        scores = []
        for answer in self.scorer(requests):
            if isinstance(answer, Exception):
                raise answer
            scores.append(answer)
        return scores


def _reply(candidates: Sequence[Candidate], line: str) -> str:
    """Returns the reply that a line asks for; empty to end the episode."""
    if line == "q":
        return ""
    if not line:
        return message_text(candidates[0].message) if candidates else ""
    if line.isdecimal() and 1 <= int(line) <= len(candidates):
        return message_text(candidates[int(line) - 1].message)
    return line if parse_action(line) else f"Action: {line}"
