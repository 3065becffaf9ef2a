"""All tensors of a model: where each tensor of a checkpoint goes, and which share of it this rank holds.

A parameter is born on its device in its dtype and never moves. A model is built twice: on the meta device, to check a
checkpoint and to count bytes before memory is taken, and then for real.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.kernels.moe_weights import Swiglu
from baton.models.dense import DENSE
from baton.models.linear import ByModule, Encoding, Experts, ExpertTensors, Fill, Linear, Stored, WeightForm
from baton.models.ops import FASTEST, Ops
from baton.models.rope import rope_table
from baton.models.spec import RopeSpec


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the divided tensors this rank of a tensor-parallel group holds."""

    rank: int = 0
    size: int = 1

    def of(self, total: int, what: str) -> range:
        """Find this rank's range of a length.

        Raises:
            ModelLoadError: the ranks cannot have equal parts.
        """
        if total % self.size:
            raise ModelLoadError(
                f"{what}={total} cannot be shared among {self.size} ranks. Give a tensor_parallel_size that divides it."
            )
        width = total // self.size
        return range(self.rank * width, (self.rank + 1) * width)


WHOLE = Share()
Split = Literal["out", "in"] | None


@dataclass(frozen=True, slots=True)
class Piece:
    """A parameter, or a part of one, and the part of a stored tensor that goes there."""

    tensor: Tensor
    box: tuple[range, ...]  # in each dimension of the stored tensor; of outputs that alternate it takes every second
    encoded: Encoded | None = None  # then `tensor` has the box's shape, and no memory


@dataclass(frozen=True, slots=True)
class Encoded:
    """Where the rows of a weight go that is encoded while it is read."""

    encoding: Encoding
    kept: tuple[Tensor, ...]  # rows of each parameter
    is_transposed: bool  # the stored tensor is [inputs, outputs]

    def part(self, begin: int, count: int) -> Encoded:
        """Where some of the rows go; of columns always all."""
        if self.is_transposed:
            return self
        return Encoded(self.encoding, tuple(kept[begin : begin + count] for kept in self.kept), False)

    def write(self, stored: Tensor) -> None:
        """Encode what was read, on the device of the parameters."""
        rows = stored.t().contiguous() if self.is_transposed else stored
        for kept, made in zip(self.kept, self.encoding.encode(rows), strict=True):
            kept.copy_(made)


@dataclass(slots=True)
class Target:
    """Where one tensor of a checkpoint goes: whole, in pieces, or nowhere on this rank."""

    shape: tuple[int, ...]  # as stored
    dtype: torch.dtype | None = None  # as it must be stored; None: any float
    pieces: list[Piece] = field(default_factory=list)
    fill: Fill | None = None  # what it holds if the checkpoint lacks it; None: it must be there
    is_scale: bool = False  # dimensions of 1 may be there or not
    is_text: bool = False  # it may be shorter

    @classmethod
    def of(cls, stored: Stored) -> Target:
        """Make the target of a tensor as a form says that it is stored."""
        fill = stored.fill if stored.optional else None
        return cls(stored.shape, stored.dtype, fill=fill, is_scale=stored.kept is not None, is_text=stored.is_text)


class Parameters:
    """All tensors of a model on this rank.

    Checkpoint names are without the prefixes (`model.`, `transformer.`, ...) that differ between versions of
    the same checkpoint.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops = FASTEST,
        form: WeightForm | ByModule = DENSE,
        share: Share = WHOLE,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.ops = ops
        self.form = form
        self.share = share
        self.targets: dict[str, Target] = {}  # by checkpoint name
        self.tied: dict[str, str] = {}  # checkpoint name that may repeat another one's tensor -> that one
        self.unused: set[str] = set()  # beginnings of checkpoint names that may be there and are not loaded
        # Names of which a checkpoint has either all of the first set or all of the second: two layouts of the same weights.
        self.alternatives: list[tuple[frozenset[str], frozenset[str]]] = []
        self.fills: list[tuple[Tensor, Fill]] = []  # each parameter once, with its dummy value
        self._settled: list[Linear | Experts] = []
        self._rotations: dict[RopeSpec, Tensor] = {}
        self.nbytes = 0  # on the device, of all parameters and tables of rotations

    def target(self, name: str) -> Target:
        """Where a tensor of the checkpoint goes; one that repeats a tied tensor goes where that one does."""
        return self.targets[self.tied.get(name, name)]

    def new(self, shape: Sequence[int], fill: Fill, dtype: torch.dtype | None = None) -> Tensor:
        """Take memory for a parameter; its values are undefined until the weights are loaded."""
        tensor = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        self.fills.append((tensor, fill))
        self.nbytes += tensor.nbytes
        return tensor

    def tensor(self, name: str, *shape: int, fill: Fill = "normal", dtype: torch.dtype | None = None) -> Tensor:
        """Make a parameter that each rank has whole: a vector, or a table of vectors; `dtype`: None is the model's."""
        tensor = self.new(shape, fill, dtype)
        self.targets[name] = Target(shape, pieces=[Piece(tensor, tuple(map(range, shape)))])
        return tensor

    def stack(self, modules: Sequence[str], *shape: int, fill: Fill) -> Tensor:
        """Make a parameter of the weights of modules, which each rank has whole: [modules, *shape]."""
        return self._join(modules, [Stored("weight", shape, fill=fill)] * len(modules), None)

    def rotations(self, rope: RopeSpec, num_positions: int) -> Tensor:
        """Make the table of rotations, once for all layers that turn alike."""
        if rope not in self._rotations:
            self._rotations[rope] = rope_table(rope, num_positions, self.device)
            self.nbytes += self._rotations[rope].nbytes
        return self._rotations[rope]

    def linear(
        self,
        parts: Iterable[tuple[str, int]],
        num_inputs: int,
        *,
        bias: bool = False,
        split: Split = None,
        groups: int = 1,
        form: WeightForm | None = None,
    ) -> Linear:
        """Make one linear layer of the parts (checkpoint module, outputs) that lie one after the other in it.

        Args:
            parts: those of one fused module follow one another under its name.
            split: how ranks share it. "out": each has its rows of each part, and its outputs. "in": each has its
                columns, and the results are to be summed. None: each has all.
            groups: in how many pieces each part of a fused module lies there: the first of each part, then the second.
            form: of its weight; None: the checkpoint's.

        Raises:
            ModelLoadError: the ranks cannot have equal shares.
        """
        parts = tuple(parts)
        modules = [module for module, _ in parts]
        form = self.form_of(modules) if form is None else form
        stored = zip(*(form.stored(outputs, num_inputs) for _, outputs in parts), strict=True)
        tensors: dict[str, Tensor] = {}
        for of_parts in stored:
            if of_parts[0].encoding:
                tensors |= self._join_encoded(modules, of_parts, split, groups)
            else:
                tensors[of_parts[0].suffix] = self._join(modules, of_parts, split, groups)
        vector = None
        if bias and split == "in" and self.share.rank:
            # The ranks' results are summed, so the first one alone adds the bias.
            self.targets.update({f"{module}.bias": Target((outputs,)) for module, outputs in parts})
        elif bias:
            biases = [Stored("bias", (outputs,), out_dim=0, fill="zeros") for _, outputs in parts]
            vector = self._join(modules, biases, split, groups)
        sizes: dict[str, int] = defaultdict(int)
        for module, outputs in parts:
            sizes[module] += outputs // (self.share.size if split == "out" else 1)
        return self._linear(form.linear(tensors, vector, tuple(sizes.values()), self.ops, self.dtype))

    def linear_of(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Make a linear layer of parameters that there are: a weight [outputs, inputs], and its bias."""
        return self._linear(DENSE.linear({"weight": weight}, bias, (len(weight),), self.ops, self.dtype))

    def _linear(self, layer: Linear) -> Linear:
        self._settled.append(layer)
        return layer

    def form_of(self, modules: Sequence[str]) -> WeightForm:
        """Find the form of modules that are multiplied together."""
        return self.form.of(modules) if isinstance(self.form, ByModule) else self.form

    def experts(self, form: WeightForm, up: ExpertTensors, down: ExpertTensors, gate: Swiglu) -> Experts:
        """Make the experts of a layer of their stacked tensors."""
        layer = form.experts(up, down, gate, self.ops, self.dtype)
        self._settled.append(layer)
        return layer

    def _join(self, modules: Sequence[str], stored: Sequence[Stored], split: Split, groups: int = 1) -> Tensor:
        """Make the parameter that one tensor of each part goes to, and note which bytes go where."""
        parts, first, dim = list(zip(modules, stored, strict=True)), stored[0], stored[0].out_dim
        if dim is None:  # stacked; a fused module has one tensor
            parts = list(dict(parts).items())
        boxes = [self.box(module, part, split) for module, part in parts]
        shape = [len(lengths) for lengths in boxes[0]]
        if dim is None:
            tensor = self.new((len(parts), *shape), first.fill, first.kept or first.dtype)
            places = list(tensor)
        else:
            num_rows = [len(box[dim]) for box in boxes]
            rows = self.new((sum(num_rows), *shape[:dim], *shape[dim + 1 :]), first.fill, first.kept or first.dtype)
            tensor = rows.movedim(0, dim)
            places = [place.movedim(0, dim) for place in torch.split(rows, num_rows)]
        if groups > 1 and dim is not None:
            self._interleave(modules, stored, boxes, places, groups)
            return tensor
        for (module, part), box, place in zip(parts, boxes, places, strict=True):
            self._place(module, part, box, place)
        return tensor

    def _join_encoded(
        self, modules: Sequence[str], stored: Sequence[Stored], split: Split, groups: int
    ) -> dict[str, Tensor]:
        """Make the parameters that the weights of the parts are encoded to."""
        first, encoding = stored[0], stored[0].encoding
        assert encoding is not None
        assert first.out_dim is not None
        assert first.in_dim is not None
        if groups > 1:
            raise ModelLoadError(
                f"{modules[0]}: a module whose parts alternate is not quantized while loading. Leave --quantization out."
            )
        boxes = [self.box(module, part, split) for module, part in zip(modules, stored, strict=True)]
        num_rows = [len(box[first.out_dim]) for box in boxes]
        tensors = {
            kept.suffix: self.new(kept.shape, kept.fill, kept.dtype)
            for kept in encoding.kept(sum(num_rows), len(boxes[0][first.in_dim]))
        }
        places = zip(*(torch.split(tensor, num_rows) for tensor in tensors.values()), strict=True)
        for module, part, box, kept in zip(modules, stored, boxes, places, strict=True):
            shape = kept[0].new_empty(1).expand([len(lengths) for lengths in box])
            self._place(module, part, box, shape, Encoded(encoding, kept, first.out_dim == 1))
        return tensors

    def _place(
        self, module: str, part: Stored, box: list[range], place: Tensor, encoded: Encoded | None = None
    ) -> None:
        """Note where a part of a stored tensor goes."""
        target = self.targets.setdefault(f"{module}.{part.suffix}", Target.of(part))
        dim = part.out_dim
        if target.pieces and dim is not None:  # of a fused module: this part lies behind the others
            begin = target.shape[dim]
            box[dim] = range(begin + box[dim].start, begin + box[dim].stop)
            target.shape = (*part.shape[:dim], begin + part.shape[dim], *part.shape[dim + 1 :])
        target.pieces.append(Piece(place, tuple(box), encoded))

    def _interleave(
        self,
        modules: Sequence[str],
        stored: Sequence[Stored],
        boxes: Sequence[list[range]],
        places: Sequence[Tensor],
        groups: int,
    ) -> None:
        """Note where the parts of one fused module go that lie there in groups."""
        first = stored[0]
        dim = first.out_dim
        assert dim is not None
        if any(part.shape[dim] % groups for part in stored):
            raise ModelLoadError(
                f"{modules[0]}.{first.suffix} is stored in blocks that reach from one of its {groups} heads into the next, "
                "which cannot be parted. Take the unquantized checkpoint of this model."
            )
        widths = [part.shape[dim] // groups for part in stored]  # of each part in one group
        total = sum(widths)
        target = self.targets[f"{modules[0]}.{first.suffix}"] = Target.of(first)
        target.shape = (*first.shape[:dim], groups * total, *first.shape[dim + 1 :])
        begin = 0
        for width, box, place in zip(widths, boxes, places, strict=True):
            held = range(box[dim].start // width, box[dim].stop // width)  # a rank has whole groups
            for group, rows in zip(held, torch.split(place, width, dim), strict=True):
                at = group * total + begin
                target.pieces.append(Piece(rows, (*box[:dim], range(at, at + width), *box[dim + 1 :])))
            begin += width

    def box(self, module: str, part: Stored, split: Split) -> list[range]:
        """The part of a stored tensor that this rank holds, a range in each dimension."""
        box = [range(length) for length in part.shape]
        divided = part.out_dim if split == "out" else part.in_dim if split == "in" else None
        if divided is not None:
            box[divided] = self.share.of(part.shape[divided], f"{module}.{part.suffix}: {split}puts")
        return box

    def settle(self) -> None:
        """Bring the loaded weights into the form that the device multiplies fastest; ends loading.

        One layer at a time, and the places in the checkpoint are forgotten first, so that no weight is kept twice.
        """
        self.targets.clear()
        self.fills.clear()
        self.nbytes = self.settled_nbytes(self.device)
        for layer in self._settled:
            layer.settle()

    def settled_nbytes(self, device: torch.device) -> int:
        """Count the bytes that `nbytes` will be on a device after `settle`."""
        return self.nbytes + sum(layer.growth(device) for layer in self._settled)
