"""Continuous batching: vLLM's asynchronous engine, fed with the prompt embeddings of our encoder and projector.

The language model runs in a process of vLLM's own. Everything else is the reference's: prompts, tokens to text, stop
strings, finish reasons, and the draws of a seed (:mod:`stetholm.serving.vllm_sampler`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch

from stetholm.errors import UserError
from stetholm.serving.engine import Completion, Delta, EngineBusy, EngineDead, Request, RequestError
from stetholm.serving.prompt_encoder import PromptEncoder
from stetholm.serving.prompts import Prompt, encode_prompt, eos_ids
from stetholm.serving.rows import Row
from stetholm.serving.vllm_start import VllmOptions, start
from stetholm.serving.waiting import Online, Waiting

ENCODED_TOGETHER = 32
"""Prompts whose recordings go through the encoder in one batch."""
FORBIDDEN = -100.0
"""Bias of a token that the model's generation settings suppress; the least that vLLM takes."""
CLOSE_SECONDS = 30.0
_UNUSABLE = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "min_new_tokens")


class VllmEngine(Online):
    """See :class:`stetholm.serving.engine.Engine`. Beam search is refused: it is the transformers engine's.

    Args:
        encoder: of the model's prompts.
        generation: the model's ``generation_config``.
        processor: of the model.
        folder: the language model, as :func:`stetholm.model.export_language.cached_language_model` writes it.
        options: of vLLM.
        max_waiting: online requests that may wait or run.

    Raises:
        UserError: vLLM is not installed or does not start, or the model's generation settings are more than it knows.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        generation: Any,
        processor: Any,
        folder: Path,
        options: VllmOptions,
        max_waiting: int = 256,
    ) -> None:
        self.processor, self.max_waiting = processor, max_waiting
        self._eos = eos_ids(generation, processor)
        self._bias = _bias(generation)
        self._context = options.context
        self._encoder = encoder
        self._names = itertools.count()
        self._change = threading.Condition()
        self._open: set[Waiting] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        """Ours in the engine's loop; vLLM has others there."""
        self._closed = False
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="stetholm-encode")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stetholm-vllm", daemon=True)
        self._thread.start()
        try:
            self._llm = self._call(_started(folder, options))
        except BaseException:
            self._end_threads()
            raise
        self._to_encode: asyncio.Queue[tuple[Prompt, asyncio.Future[torch.Tensor]]] = asyncio.Queue()
        asyncio.run_coroutine_threadsafe(self._ours(self._encode()), self._loop)

    # --- offline ---

    def generate_many(self, requests: list[Request]) -> list[list[Completion]]:
        """Answer all ``requests``; answers of the same prompt share its embeddings and, in vLLM, its keys."""
        prompts = [self._prompt(request, f"request {place}: ") for place, request in enumerate(requests)]
        rows = [[self._row(prompt, index) for index in range(prompt.request.sampling.n)] for prompt in prompts]
        self._call(self._ours(self._answer_all(prompts, rows)))
        return [[row.completion() for row in answers] for answers in rows]

    async def _answer_all(self, prompts: list[Prompt], rows: list[list[Row]]) -> None:
        shared: dict[tuple[Any, ...], asyncio.Task[torch.Tensor]] = {}
        async with asyncio.TaskGroup() as tasks:
            for prompt, answers in zip(prompts, rows, strict=True):
                key = (tuple(prompt.ids), id(prompt.request.features))
                if key not in shared:
                    shared[key] = tasks.create_task(self._embed(prompt))
                for row in answers:
                    if not row.done:
                        tasks.create_task(self._answer(row, shared[key]))

    # --- online ---

    def _submit(self, waiting: Waiting) -> None:
        with self._change:
            self._admit()
            self._open.add(waiting)
        task = asyncio.run_coroutine_threadsafe(self._ours(self._serve(waiting)), self._loop)
        waiting.on_cancel = task.cancel

    async def _serve(self, waiting: Waiting) -> None:
        try:
            prompt = self._prompt(waiting.request)
            waiting.rows = [self._row(prompt, index, waiting.send) for index in range(waiting.request.sampling.n)]
            async with asyncio.TaskGroup() as tasks:
                embeds = tasks.create_task(self._embed(prompt))
                for row in waiting.rows:
                    if not row.done:
                        tasks.create_task(self._answer(row, embeds))
        except Exception as error:
            waiting.send(self._told(error))
        finally:
            with self._change:
                self._open.discard(waiting)

    # --- both ---

    def _prompt(self, request: Request, where: str = "") -> Prompt:
        try:
            if request.sampling.num_beams > 1:
                raise RequestError("beam search (num_beams > 1) needs the engine transformers; this one is vllm")
            return encode_prompt(self.processor, request, self._context)
        except RequestError as error:
            raise RequestError(f"{where}{error}") from error

    def _row(self, prompt: Prompt, index: int, sink: Callable[[Delta], None] | None = None) -> Row:
        return Row(prompt, index, self._decode, self._eos, sink)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    async def _embed(self, prompt: Prompt) -> torch.Tensor:
        """Embeddings (tokens, d) of a prompt with its recordings."""
        done: asyncio.Future[torch.Tensor] = self._loop.create_future()
        self._to_encode.put_nowait((prompt, done))
        return await done

    async def _encode(self) -> None:
        """For ever: whatever waits for the encoder goes through it together."""
        while True:
            batch = [await self._to_encode.get()]
            while len(batch) < ENCODED_TOGETHER and not self._to_encode.empty():
                batch.append(self._to_encode.get_nowait())
            batch = [(prompt, done) for prompt, done in batch if not done.cancelled()]
            embeds: Sequence[torch.Tensor | Exception]
            try:
                embeds = await self._loop.run_in_executor(
                    self._encoding, self._encoder, [prompt for prompt, _ in batch]
                )
            except Exception as error:
                embeds = [error] * len(batch)
            for (_, done), found in zip(batch, embeds, strict=True):
                if done.done():  # nobody waits for it any more
                    continue
                if isinstance(found, Exception):
                    done.set_exception(found)
                else:
                    done.set_result(found)

    async def _answer(self, row: Row, embeds: asyncio.Task[torch.Tensor]) -> None:
        """Feed a row with its tokens; cancelled, or its iterator closed, vLLM drops the request."""
        prompt = await asyncio.shield(embeds)
        if row.begun:
            begun = await self._loop.run_in_executor(self._encoding, self._encoder.embed_tokens, row.begun)
            prompt = torch.cat([prompt, begun])
        name = f"answer-{next(self._names)}"
        async with aclosing(self._llm.generate({"prompt_embeds": prompt}, self._parameters(row), name)) as outputs:
            async for output in outputs:
                for token in output.outputs[0].token_ids:
                    row.push(token)
                if row.done and not output.finished:  # a stop string, which vLLM knows nothing of
                    return

    def _parameters(self, row: Row) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = row.prompt.request.sampling
        # Without a reader or stop strings nobody needs the tokens one by one.
        stepwise = row.sink is not None or bool(sampling.stop)
        return SamplingParams(
            temperature=0.0,
            max_tokens=row.left,
            stop_token_ids=sorted(self._eos),
            detokenize=False,
            logit_bias=self._bias,
            extra_args=_draw(row) if sampling.temperature > 0 else None,
            output_kind=RequestOutputKind.DELTA if stepwise else RequestOutputKind.FINAL_ONLY,
        )

    async def _ours(self, work: Coroutine[Any, Any, Any]) -> Any:
        """``work`` as a task that :meth:`close` cancels."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    # --- the end ---

    def close(self) -> None:
        """Cancel what runs or waits, end vLLM's process and our threads."""
        with self._change:
            if self._closed:
                return
            self._closed = True
            left = list(self._open)
        for waiting in left:
            waiting.send(EngineBusy("the engine is closed"))
            waiting.cancel()
        self._call(self._shut_down())
        self._end_threads()

    async def _shut_down(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._llm.shutdown(timeout=CLOSE_SECONDS)

    def _end_threads(self) -> None:
        self._encoding.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run ``work`` in the engine's loop and wait for it."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except (Exception, BaseExceptionGroup) as error:
            if (told := self._told(error)) is error:
                raise
            raise told from error

    def _told(self, error: BaseException) -> BaseException:
        """What a caller is told of an error: the first of a task group's, or that vLLM's process has ended."""
        if getattr(getattr(self, "_llm", None), "errored", False):
            return EngineDead("vLLM's process has ended")
        return _first(error)


async def _started(folder: Path, options: VllmOptions) -> Any:
    return start(folder, options)


def _first(error: BaseException) -> BaseException:
    """The first of a task group's errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _draw(row: Row) -> dict[str, dict[str, float | int]]:
    """What the sampler in vLLM's process needs of a row."""
    from stetholm.serving.vllm_sampler import KEY

    sampling = row.prompt.request.sampling
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(7))
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed % 2**64, "index": row.index}
    return {KEY: {**chosen, "begun": len(row.begun)}}


def _bias(config: Any) -> dict[int, float] | None:
    """Of the tokens that the model's generation settings suppress.

    Raises:
        UserError: the settings ask for what the transformers engine alone does.
    """
    neutral: tuple[Any, ...] = (None, 0, 1.0, [], {})
    asked = [name for name in _UNUSABLE if getattr(config, name, None) not in neutral]
    if asked:
        raise UserError(
            f"generation_config.json asks for {', '.join(asked)}: the engine vllm does not do that, transformers does"
        )
    suppressed: int | Iterable[int] = getattr(config, "suppress_tokens", None) or ()
    ids = [suppressed] if isinstance(suppressed, int) else list(suppressed)
    return {id_: FORBIDDEN for id_ in ids} or None
