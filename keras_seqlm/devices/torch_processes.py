"""Data parallel on torch: one process for each GPU, started by `torchrun`, that train together as one.

Keras's `fit` on torch knows nothing of other processes. Here each of them reads its own rows, and what must be that of
the whole batch is summed over all of them: the count of tokens that a loss takes its mean over, the gradient before it is
clipped or looked at for NaN, and the numbers of metrics. So all make the same step and the same decisions.
"""

import atexit
import contextlib
import os

import keras

from keras_seqlm.devices import processes
from keras_seqlm.devices.feed import check_rows, own_rows
from keras_seqlm.devices.strategies import Single, refuse_carried_state
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.losses.targets import summed_over_processes
from keras_seqlm.nesting import nested

TORCHRUN = "torchrun --nproc-per-node={} train.py"
# What torchrun says to each process that it starts.
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LARGEST_DRIFT = 1e-5  # relative; the same sums in the same order differ by nothing at all
SEEDS_APART = 0x9E3779B1  # between the seeds of two processes: counters of draws, added to a seed, do not get so far


class TorchDataParallel(Single):
    """`torch.distributed` over the processes of `torchrun`: the batch is split, the model is copied.

    NCCL carries the numbers of GPUs, gloo those of CPUs. The whole gradient is exchanged at once when the backward pass
    is over, in float32, so that while it is a process holds it twice.
    """

    def __init__(self):
        join()
        self._index, self.num_replicas = processes.index_and_count()
        self._training = False

    def check(self, model):
        super().check(model)
        if self.num_replicas > 1:
            refuse_carried_state(model)
            _refuse(model)

    def start(self, model):
        """Give all processes the weights, optimizer and random numbers of the first, before the first step.

        Raises:
            ValueError: they do not stand at the same step, or have models of different shapes.
        """
        if self.num_replicas == 1:
            return
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        _check_alike(model)
        for variable in _state(model):
            _take_from_first(variable.value)
        _share_random_numbers()

    @contextlib.contextmanager
    def training(self, model):
        """The context of `model.fit`: there, and only there, the steps of the model are made together."""
        if self.num_replicas == 1:
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(_replaced(model.optimizer, "apply", _with_averaged_gradients))
            stack.enter_context(_replaced(model, "train_step", lambda step: _together(model, step, self._index)))
            stack.enter_context(_replaced(model, "test_step", lambda step: _together(model, step)))
            self._training = True
            try:
                yield
            finally:
                self._training = False

    def callbacks(self):
        """What ends the run in all processes at once, and sees that they have not drifted apart."""
        return [StopTogether()] if self.num_replicas > 1 else []

    def feed(self, train, first_step):
        self._check_training()
        check_rows(train, self.num_replicas)
        return own_rows(
            train, self._index, self.num_replicas, lambda data: super(TorchDataParallel, self).feed(data, first_step)
        )

    def feed_validation(self, validation):
        if validation is None:
            return None
        self._check_training()
        check_rows(validation, self.num_replicas)
        return own_rows(validation, self._index, self.num_replicas, super().feed_validation)

    def _check_training(self):
        if self.num_replicas > 1 and not self._training:
            raise ValueError(
                "on torch a fit of several processes exchanges gradients within the strategy's training(model) alone; train "
                "with Recipe.fit, or write\n\n    strategy.start(model)\n    with strategy.training(model):\n"
                "        model.fit(strategy.feed(train, 0), callbacks=strategy.callbacks(), ...)\n"
            )


class StopTogether(keras.callbacks.Callback):
    """Ends training in all processes where one of them says so, as a callback that looks at the clock may.

    At the end of an epoch it looks whether all have the same weights.

    Raises:
        RuntimeError: they have not; the message names the weight that differs most.
    """

    def on_train_batch_end(self, batch, logs=None):
        self._agree()

    def on_epoch_end(self, epoch, logs=None):
        self._agree()
        self._look_for_drift()

    def _agree(self):
        if processes.any_true(self.model.stop_training):
            self.model.stop_training = True

    def _look_for_drift(self):
        import torch
        from torch import distributed

        variables = self.model.trainable_variables
        sums = torch.stack([variable.value.detach().abs().sum(dtype=_wide()) for variable in variables]).to(_place())
        # NaN compares with nothing: whether a sum is NaN is exchanged beside it, and 0 stands for it.
        lowest = torch.stack([sums.nan_to_num(), sums.isnan().to(sums.dtype)])
        highest = lowest.clone()
        distributed.all_reduce(lowest, distributed.ReduceOp.MIN)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        drift, in_some = (highest - lowest) / highest.clamp(min=1e-30)
        worst = int((drift + in_some).argmax())
        if drift[worst] > LARGEST_DRIFT or in_some[worst]:
            how = (
                "is NaN in some of them alone"
                if in_some[worst]
                else f"differs by {float(drift[worst]):.1e} of its size"
            )
            raise RuntimeError(
                f"the processes no longer have the same weights: {variables[worst].path} {how}. Something changes them in one process alone, as a callback does that works where is_chief() only; do "
                "it in all of them, and start again from the last checkpoint"
            )


def is_launched():
    """Whether `torchrun`, or what sets the same names, started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def join():
    """Join the processes that torchrun started. Who has joined already is left as is.

    Raises:
        ValueError: the environment does not say all of it, or there are more processes than GPUs.
    """
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    missing = [name for name in NAMES if name not in os.environ]
    if missing:
        raise ValueError(
            f"distribution='data-parallel' on torch takes processes that torchrun starts, one for each GPU, and "
            f"{', '.join(missing)} is not set; start it with `{TORCHRUN.format(max(gpus(), 2))}`, or use distribution='single'"
        )
    on_gpus, local = gpus() > 0, int(os.environ["LOCAL_RANK"])
    if on_gpus:
        if local >= gpus():
            raise ValueError(
                f"torchrun started process {local + 1} of this machine (LOCAL_RANK={local}), which has {gpus()} GPUs; start one "
                f"for each: `{TORCHRUN.format(gpus())}`, or set KERAS_TORCH_DEVICE=cpu for all"
            )
        torch.cuda.set_device(local)  # "cuda", as Keras says, is this one then
    # Flags and the like go by gloo in any case.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    atexit.register(distributed.destroy_process_group)


def gpus():
    """How many CUDA devices Keras could train on here."""
    import torch

    wanted = os.environ.get("KERAS_TORCH_DEVICE", "cuda").lower()
    return torch.cuda.device_count() if wanted.startswith(("cuda", "gpu")) and torch.cuda.is_available() else 0


def _together(model, step, index=None):
    """A step of `model` on the rows of this process whose loss and metrics are of all rows.

    Args:
        index: of the process, where the step draws random numbers.
    """

    def step_together(data):
        before = {id(variable): variable.value.detach().clone() for variable in model.metrics_variables}
        random = contextlib.nullcontext() if index is None else _own_random_numbers(model, index)
        with summed_over_processes(lambda numbers: _summed([numbers])[0]), random:
            step(data)
        _add_up(model.metrics_variables, before)
        return model.get_metrics_result()

    return step_together


def _add_up(variables, before):
    """Let metrics go on by what the steps of all processes added to them: they are alike in all of them, always."""
    added = [variable.value.detach().to(_wide()) - before.get(id(variable), 0) for variable in variables]
    for variable, sum_ in zip(variables, _summed(added), strict=True):
        variable.assign((sum_ + before.get(id(variable), 0)).to(variable.value.dtype))


def _with_averaged_gradients(apply):
    """The optimizer's `apply`, of the gradient's mean over the processes.

    Each has as many rows, and its loss is divided by the tokens that count in all of them, so the mean is the gradient
    of the whole batch.
    """

    def average_and_apply(gradients, trainable_variables=None):
        places = [i for i, gradient in enumerate(gradients) if gradient is not None]
        gradients, count = list(gradients), processes.index_and_count()[1]
        for i, sum_ in zip(places, _summed([gradients[i] for i in places]), strict=True):
            gradients[i] = sum_.div_(count).to(gradients[i].dtype)
        apply(gradients, trainable_variables)

    return average_and_apply


def _summed(tensors):
    """Each tensor's sum over the processes, in one exchange; half precision, which would lose some of it, as float32."""
    import torch
    from torch import distributed

    if not tensors:
        return []
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    flat = torch.cat([tensor.detach().reshape(-1).to(_place(), dtype) for tensor in tensors])
    distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape).to(tensor.device) for part, tensor in zip(parts, tensors, strict=True)]


def _place():
    """Where numbers are exchanged: on the GPU by NCCL, else on the host by gloo."""
    return "cuda" if gpus() else "cpu"


def _wide():
    import torch

    return torch.float64


@contextlib.contextmanager
def _own_random_numbers(model, index):
    """Dropout of this process's own, while the generators go on alike in all of them, as a checkpoint holds them.

    A layer without a seed draws from torch's generator, which is seeded for this step by the number that is drawn from
    it and the process; one with a seed draws from its own, whose seed is moved for this step.
    """
    import torch

    number = int(torch.randint(2**31, (), device="cpu"))
    here = [torch.cuda.current_device()] if gpus() else []
    # As int32, as which Keras keeps the bits of a seed.
    apart = (index * SEEDS_APART + 2**31) % 2**32 - 2**31
    layers = model._flatten_layers()
    generators = {id(each): each for layer in layers for each in layer._seed_generators}.values()
    with torch.random.fork_rng(here):
        torch.default_generator.manual_seed(number + index)
        if here:
            torch.cuda.manual_seed(number + index)
        _move_seeds(generators, apart)
        try:
            yield
        finally:
            _move_seeds(generators, -apart)


def _move_seeds(generators, by):
    import torch

    with torch.no_grad():
        for generator in generators:
            generator.state.value[0] += by  # past the end of 32 bits it comes round


def _state(model):
    return [*model.variables, *model.optimizer.variables]


def _check_alike(model):
    import torch
    from torch import distributed

    counts = next(iter([*nested(model.optimizer)][::-1]))._iterations
    here = [int(counts.value), len(_state(model)), sum(variable.value.numel() for variable in _state(model))]
    there = [torch.zeros(3, dtype=torch.int64) for _ in range(processes.index_and_count()[1])]
    distributed.all_gather(there, torch.tensor(here))
    steps, *shapes = zip(*(each.tolist() for each in there), strict=True)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes stand at different steps, {', '.join(map(str, steps))}: not all of them found the same "
            "checkpoint; let the folder be one that all of them see"
        )
    if any(len(set(numbers)) > 1 for numbers in shapes):
        raise ValueError(
            f"the processes have different models, of {', '.join(map(str, shapes[-1]))} numbers with the optimizer's; build "
            "the same in all of them"
        )


def _take_from_first(tensor):
    """Write the first process's numbers into a tensor of each."""
    import torch
    from torch import distributed

    with torch.no_grad():
        sent = tensor.detach().contiguous().reshape(-1).view(torch.uint8).to(_place())  # bytes, for all dtypes alike
        distributed.broadcast(sent, 0)
        tensor.copy_(sent.to(tensor.device).view(tensor.dtype).reshape(tensor.shape))


def _share_random_numbers():
    import torch

    numbers = torch.get_rng_state().clone()
    _take_from_first(numbers)
    torch.set_rng_state(numbers)


@contextlib.contextmanager
def _replaced(thing, name, by):
    """The context in which a method of one object is `by(method)`."""
    own, before = name in vars(thing), getattr(thing, name)
    setattr(thing, name, by(before))
    try:
        yield
    finally:
        if own:
            setattr(thing, name, before)
        else:
            delattr(thing, name)


def _refuse(model):
    """What would train on other numbers than one process does, or drift apart."""
    layers = list(model._flatten_layers())
    faults = {
        "BatchNormalization: each process would take the moments of its own rows; use LayerNormalization": any(
            isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in layers
        ),
        "quantize('float8'), whose scales each process would find by itself; train in mixed_bfloat16": any(
            getattr(layer, "quantization_mode", None) == "float8" for layer in layers
        ),
    }
    if model.compiled:
        faults |= _faults_of_compile(model, layers)
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ValueError("the model does not go with several processes of torch: " + "; ".join(found))


def _faults_of_compile(model, layers):
    losses = keras.tree.flatten(model.loss)
    reductions = [getattr(loss, "reduction", None) for loss in losses]
    owner = next(kind for kind in type(model).__mro__ if "train_step" in vars(kind))
    own_loss = type(model).compute_loss is keras.Model.compute_loss
    return {
        "steps_per_execution above 1: Keras raises on torch; leave it at 1": model.steps_per_execution > 1,
        "jit_compile=True: torch would compile the exchange of gradients into the step; leave it out": bool(
            model.jit_compile and model._should_torch_compile()
        ),
        "reduction='sum': gradients are averaged over the processes; use 'sum_over_batch_size'": "sum" in reductions,
        "reduction='mean_with_sample_weight': a process with few real tokens would weigh too much; use "
        "'sum_over_batch_size'": "mean_with_sample_weight" in reductions,
        "ignore_class of a loss of Keras's: each process would take the mean over its own tokens; use losses.CrossEntropy, "
        "which takes it over those of all": own_loss
        and any(
            getattr(loss, "ignore_class", None) is not None for loss in losses if not isinstance(loss, CrossEntropy)
        ),
        "a mask (mask_zero=True, Masking): each process would take the mean over its own tokens; give targets of -1 to "
        "losses.CrossEntropy": own_loss
        and any(getattr(layer, "mask_zero", False) or isinstance(layer, keras.layers.Masking) for layer in layers),
        "a train_step of its own, whose gradients need not come by optimizer.apply, and whose numbers are of one process; "
        "put the loss into compute_loss": owner.__module__.partition(".")[0] not in ("keras", "keras_seqlm"),
    }
