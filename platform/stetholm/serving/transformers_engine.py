"""The reference engine: ``generate`` of transformers, one batch at a time.

Offline and online requests go the same way: a batch of rows, each with its own sampling, seed, stop strings and
budget. Online, one thread takes whatever waits (up to ``max_batch`` answers) as the next batch; it is not continuous
batching: a request waits for the running batch to end.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from stetholm.model.beams import use_grouped_attention
from stetholm.serving.decoding import BeamStop, RowSampler, RowStop
from stetholm.serving.engine import Completion, Delta, EngineBusy, Request, RequestError
from stetholm.serving.prompts import Prompt, batch_prompts, encode_prompt, encode_recordings, eos_ids
from stetholm.serving.rows import Row
from stetholm.serving.waiting import Online, Waiting


class TransformersEngine(Online):
    """See :class:`stetholm.serving.engine.Engine`."""

    def __init__(self, model: Any, processor: Any, max_batch: int = 32, max_waiting: int = 256) -> None:
        """``model``: StethoLMForConditionalGeneration. ``max_batch`` answers run together, ``max_waiting`` may wait."""
        self.model, self.processor = model.eval(), processor
        use_grouped_attention(model.model.language_model)
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self._eos = eos_ids(model.generation_config, processor)
        self._running = threading.Lock()
        self._change = threading.Condition()
        self._open: deque[Waiting] = deque()
        self._worker: threading.Thread | None = None
        self._closed = False

    # --- offline ---

    def generate_many(self, requests: list[Request]) -> list[list[Completion]]:
        """Answer all ``requests``, batched by decoding method, budget and length; results in their order."""
        prompts = [self._prompt(request, f"request {place}: ") for place, request in enumerate(requests)]
        rows = [[self._row(prompt, index) for index in range(prompt.request.sampling.n)] for prompt in prompts]
        for batch in batches([row for answers in rows for row in answers if not row.done], self.max_batch):
            with self._running:
                self._run(batch)
            for row in batch:
                if row.index == row.prompt.request.sampling.n - 1:
                    row.prompt.audio = None  # its last answer is made
        return [[row.completion() for row in answers] for answers in rows]

    # --- online ---

    def close(self) -> None:
        """Cancel what runs or waits and end the worker."""
        with self._change:
            self._closed = True
            for waiting in self._open:
                waiting.cancel()
            self._change.notify_all()
        if self._worker is not None:
            self._worker.join()

    def _submit(self, waiting: Waiting) -> None:
        with self._change:
            self._admit()
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="stetholm-generate", daemon=True)
                self._worker.start()
            self._open.append(waiting)
            self._change.notify_all()

    def _work(self) -> None:
        """The generating thread: batch after batch until closed."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._open or self._closed)
                if self._closed:
                    for waiting in self._open:
                        waiting.send(EngineBusy("the engine is closed"))
                    return
                batch = self._take()
            self._answer(batch)
            with self._change:
                for waiting in batch:
                    self._open.remove(waiting)

    def _take(self) -> list[Waiting]:
        """The next batch: from the front, as many as fit, greedy or sampled ones together, a beam search alone."""
        for waiting in [waiting for waiting in self._open if waiting.cancelled]:
            self._open.remove(waiting)
        batch: list[Waiting] = []
        answers = 0
        for waiting in self._open:
            sampling = waiting.request.sampling
            answers += sampling.n
            if batch and (answers > self.max_batch or sampling.num_beams > 1):
                break
            batch.append(waiting)
            if sampling.num_beams > 1:
                break
        return batch

    def _answer(self, batch: list[Waiting]) -> None:
        """Run a batch; what fails before generation fails alone, a failed generation is told to all its readers."""
        ready = []
        for waiting in batch:
            try:
                self._prepare(waiting)
                ready.append(waiting)
            except Exception as error:
                waiting.send(error)
        try:
            rows = [row for waiting in ready for row in waiting.rows if not row.done]
            for part in batches(rows, self.max_batch):
                with self._running:
                    self._run(part)
        except Exception as error:
            for waiting in ready:
                waiting.send(error)

    def _prepare(self, waiting: Waiting) -> None:
        prompt = self._prompt(waiting.request)
        waiting.rows = [self._row(prompt, index, waiting.send) for index in range(waiting.request.sampling.n)]
        if waiting.cancelled:  # closed while this was prepared
            waiting.cancel()

    # --- both ---

    def _prompt(self, request: Request, where: str = "") -> Prompt:
        context = int(self.model.config.get_text_config().max_position_embeddings)
        try:
            return encode_prompt(self.processor, request, context)
        except RequestError as error:
            raise RequestError(f"{where}{error}") from error

    def _row(self, prompt: Prompt, index: int, sink: Callable[[Delta], None] | None = None) -> Row:
        return Row(prompt, index, self._decode, self._eos, sink)

    def _decode(self, ids: list[int]) -> str:
        # Without clean-up of spaces, so that the text of some tokens is a prefix of the text of more.
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @torch.inference_mode()
    def _run(self, rows: list[Row]) -> None:
        """Generate the answers of ``rows`` together; all rows are done afterwards."""
        if not all(row.cancelled for row in rows):
            encode_recordings(self.model, list({id(row.prompt): row.prompt for row in rows}.values()))
            self._generate(rows, batch_prompts(self.processor, [(row.prompt, row.begun) for row in rows]))

    def _generate(self, rows: list[Row], batch: dict[str, Any]) -> None:
        device = self.model.device
        sampling = rows[0].prompt.request.sampling
        beams = sampling.num_beams > 1
        config = copy.deepcopy(self.model.generation_config)
        config.update(
            max_new_tokens=max(row.left for row in rows),
            num_beams=sampling.num_beams,
            length_penalty=sampling.length_penalty,
            early_stopping=beams,
            do_sample=False,
            eos_token_id=sorted(self._eos),
            pad_token_id=min(self._eos),
        )
        output = self.model.generate(
            **{key: value.to(device) for key, value in batch.items() if value is not None},
            generation_config=config,
            logits_processor=LogitsProcessorList([] if beams else [RowSampler(rows, device)]),
            stopping_criteria=StoppingCriteriaList([BeamStop(rows) if beams else RowStop(rows)]),
        )
        if beams:
            for row, ids in zip(rows, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                for token in ids:
                    row.push(token)


def batches(rows: Iterable[Row], max_batch: int) -> Iterator[list[Row]]:
    """Rows in batches that waste little: like budgets and lengths together, a beam search by its own settings.

    The answers of one prompt stay beside each other and in order.
    """

    def key(row: Row) -> tuple[float, ...]:
        sampling = row.prompt.request.sampling
        method = (sampling.num_beams, sampling.length_penalty if sampling.num_beams > 1 else 0.0)
        return (*method, -row.left, -len(row.prompt.ids) - len(row.begun))

    def together(row: Row) -> tuple[float, ...]:
        return key(row)[: 3 if row.prompt.request.sampling.num_beams > 1 else 2]

    batch: list[Row] = []
    for row in sorted(rows, key=key):
        beams = row.prompt.request.sampling.num_beams
        if batch and (len(batch) * beams >= max_batch or together(batch[0]) != together(row)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
