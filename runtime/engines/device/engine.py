"""The engine on a GPU: memory is bound once for each shape, and a step waits once."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Drafts, Reductions, StepTree, TokenIds, VerifyOutputs
from medusa_trt.runtime.engines.device.bindings import Bindings, BoundGraph, Executor
from medusa_trt.runtime.engines.device.cache import DeviceCache
from medusa_trt.runtime.engines.device.memory import Cuda
from medusa_trt.runtime.engines.reduce_tensors import (
    OUTPUTS,
    allocate_inputs,
    copy_outputs,
    find_parent_rows,
    make_empty_reductions,
    split_by_sampling,
    write_inputs,
)
from medusa_trt.runtime.manifest import CACHE_ITEM_BYTES
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree

_READ_STEP = 256
"""A step reads a multiple of this many cache rows, because each number needs its own binding."""


class DeviceEngine:
    """Runs a bundle's graphs on a GPU, with any executor.

    A step copies the token ids and lengths to the device, runs the graph, and copies the small
    outputs back, all on one stream with one wait at the end. If the executor allows it, the second
    run of a shape is recorded as a CUDA graph with its copies.
    """

    # A tree's mask is bound once, or part of the engine.
    takes_new_trees = False
    _capacity_advice = "open the session with a larger max_length"

    def __init__(
        self, bundle: Bundle, executor: Executor, cuda: Cuda, *, capacity: int, batch_size: int
    ) -> None:
        """Allocates the KV cache.

        Args:
            bundle: an opened bundle.
            executor: runs the graphs on the stream of `cuda`; closed with the engine.
            cuda: the device; closed with the engine.
            capacity: number of rows in a KV cache slot.
            batch_size: number of slots.

        Raises:
            EngineError: the device's memory is full.
        """
        self._cuda, self._bindings = cuda, Bindings(cuda, executor)
        self._model, self._heads_spec = bundle.manifest.model, bundle.manifest.heads
        self._heads_read_root = bundle.manifest.heads_read_root
        target = bundle.manifest.target
        self._cache_dtype = target.cache_dtype
        self.cache = DeviceCache(
            cuda,
            num_layers=self._model.num_layers,
            batch_size=batch_size,
            num_kv_heads=self._model.num_kv_heads,
            capacity=capacity,
            head_dim=self._model.head_dim,
            item_bytes=CACHE_ITEM_BYTES[target.cache_dtype],
            in_place=target.cache_in_place,
        )
        positions = cuda.allocate_pinned((capacity,), np.int64)
        positions[:] = np.arange(capacity)
        self._positions = cuda.allocate(positions.nbytes)
        cuda.upload(self._positions, positions)
        self.capacity, self.batch_size = capacity, batch_size
        self.prefill_chunk = target.prefill_chunk
        self._reduce_spec = bundle.manifest.graphs["reduce"]
        self._row: NDArray[np.float32] | None = None
        self._last_logits: int | None = None

    def verify(
        self,
        input_ids: TokenIds,
        tree: StepTree,
        past_lengths: Sequence[int],
        *,
        rows: Sequence[int] | None = None,
        first_slot: int = 0,
        logits: bool = False,
        reductions: bool = False,
    ) -> VerifyOutputs:
        """See `Engine.verify`; logits for `reduce` stay on the device."""
        del reductions
        assert isinstance(tree, MedusaTree), "trees are bound once; see takes_new_trees"
        longest = max(past_lengths) + tree.num_nodes
        if longest > self.capacity:
            raise EngineError(
                f"{tree.num_nodes} nodes after {max(past_lengths)} tokens do not fit the KV cache "
                f"of {self.capacity} rows: {self._capacity_advice}"
            )
        num_read = min(self.capacity, -(-longest // _READ_STEP) * _READ_STEP)
        shown_rows = tuple(range(tree.num_nodes) if rows is None else rows)
        num_sequences = len(past_lengths)
        key = (
            id(tree),
            num_sequences,
            first_slot,
            shown_rows,
            logits,
            num_read,
            self.cache.current,
        )
        bound = self._bindings.get(key)
        if bound is None:
            with self._bindings.open(key, "verify", tree) as bound:
                self._bind_verify(
                    bound,
                    tree,
                    shown_rows,
                    first_slot,
                    num_sequences,
                    logits=logits,
                    num_read=num_read,
                )
        bound.inputs[names.INPUT_IDS][...] = input_ids
        bound.inputs[names.PAST_LENGTH][:] = past_lengths
        outputs = self._bindings.run(bound)
        self.cache.advance()
        shape = (num_sequences, len(shown_rows))
        self._last_logits = bound.addresses[names.LOGITS]
        if bound.verify_outputs is None:
            bound.verify_outputs = VerifyOutputs(
                argmax=outputs[names.ARGMAX].reshape(shape),
                hidden=outputs[names.HIDDEN].reshape(*shape, -1),
                logits=outputs[names.LOGITS].reshape(*shape, -1) if logits else None,
            )
        return bound.verify_outputs

    def reduce(
        self,
        input_ids: TokenIds,
        tree: StepTree,
        samplings: Sequence[SamplingOptions],
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        """See `Engine.reduce`."""
        assert self._last_logits is not None
        ids, num_rows = np.asarray(input_ids), uniforms.shape[1]
        row_bytes = self._model.vocab_size * np.dtype(np.float32).itemsize
        reductions = make_empty_reductions(uniforms.shape)
        for group in split_by_sampling(samplings):
            sampling, sequences = group
            numbers = uniforms[sequences]
            address = self._last_logits + sequences.start * num_rows * row_bytes
            key = ("reduce", numbers.size, address)
            bound = self._bindings.get(key)
            if bound is None:
                with self._bindings.open(key, "reduce") as bound:
                    self._bind_reduce(bound, numbers.size, address)
            parents = find_parent_rows(tree, sequences, num_rows)
            vocab_size = self._model.vocab_size
            write_inputs(bound.inputs, ids[sequences], parents, sampling, numbers, vocab_size)
            outputs = self._bindings.run(bound)
            copy_outputs(reductions, group, outputs, numbers, partial(self._download_row, address))
        return reductions

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        """See `Engine.draft`."""
        key = ("heads", len(hidden))
        bound = self._bindings.get(key)
        if bound is None:
            with self._bindings.open(key, "heads") as bound:
                self._bindings.bind_input(
                    bound, names.HIDDEN, np.zeros_like(hidden), every_run=True
                )
                if self._heads_read_root:
                    roots = np.zeros(len(hidden), np.int64)
                    self._bindings.bind_input(bound, names.ROOT_IDS, roots, every_run=True)
                spec = self._heads_spec
                assert spec is not None  # the decode loop asks no heads that are not there
                shape = (len(hidden), spec.num_heads, spec.top_k)
                self._bindings.bind_output(bound, names.DRAFT_IDS, shape, "int64", download=True)
        bound.inputs[names.HIDDEN][...] = hidden
        if self._heads_read_root:
            bound.inputs[names.ROOT_IDS][:] = root_ids
        return Drafts(self._bindings.run(bound)[names.DRAFT_IDS], None)

    def close(self) -> None:
        """See `Engine.close`."""
        self._bindings.close()
        self._row, self._last_logits = None, None
        self._cuda.close()

    def _bind_verify(
        self,
        bound: BoundGraph,
        tree: MedusaTree,
        rows: Sequence[int],
        first_slot: int,
        num_sequences: int,
        *,
        logits: bool,
        num_read: int,
    ) -> None:
        bindings, model = self._bindings, self._model
        ids = np.zeros((num_sequences, tree.num_nodes), np.int64)
        lengths = np.zeros(num_sequences, np.int64)
        bindings.bind_input(bound, names.INPUT_IDS, ids, every_run=True)
        bindings.bind_input(bound, names.PAST_LENGTH, lengths, every_run=True)
        if bound.executable.takes(names.TREE_MASK):
            offsets = np.asarray(tree.position_offsets, np.int64)
            bindings.bind_input(bound, names.TREE_MASK, tree.additive_mask)
            bindings.bind_input(bound, names.POSITION_OFFSETS, offsets)
        bindings.bind_input(bound, names.ROWS, np.array(rows, np.int64))
        bound.executable.bind_input(names.CACHE_POSITIONS, self._positions, (num_read,), "int64")
        num_rows = num_sequences * len(rows)
        bindings.bind_output(bound, names.ARGMAX, (num_rows,), "int64", download=True)
        hidden_shape, logits_shape = (num_rows, model.hidden_size), (num_rows, model.vocab_size)
        bindings.bind_output(bound, names.HIDDEN, hidden_shape, "float32", download=True)
        bindings.bind_output(bound, names.LOGITS, logits_shape, "float32", download=logits)
        shape = (num_sequences, model.num_kv_heads, self.capacity, model.head_dim)
        for layer in range(model.num_layers):
            for kind in ("key", "value"):
                past, present = self.cache.addresses(layer, kind, first_slot)
                name, updated = names.past_name(layer, kind), names.present_name(layer, kind)
                bound.executable.bind_input(name, past, shape, self._cache_dtype)
                bound.executable.bind_output(updated, present, shape, self._cache_dtype)

    def _bind_reduce(self, bound: BoundGraph, num_rows: int, logits: int) -> None:
        """Binds the reduce graph to the logits of the last step, at the address `logits`."""
        shape = (num_rows, self._model.vocab_size)
        bound.executable.bind_input(names.LOGITS, logits, shape, "float32")
        for name, array in allocate_inputs(self._reduce_spec, num_rows).items():
            if name == names.NUM_SORTED:
                self._bindings.bind_host_input(bound, name, array)
            else:
                self._bindings.bind_input(bound, name, array, every_run=True)
        for name, dtype in OUTPUTS.items():
            self._bindings.bind_output(bound, name, (num_rows,), dtype, download=True)

    def _download_row(self, logits: int, row: int) -> NDArray[np.float32]:
        """Downloads one row of logits; the next call overwrites it."""
        if self._row is None:
            self._row = self._cuda.allocate_pinned((self._model.vocab_size,), np.float32)
        self._cuda.download(self._row, logits + row * self._row.nbytes)
        self._cuda.synchronize()
        return self._row
