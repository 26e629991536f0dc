"""Stands for the engine: calls a recorder where a run does, and reads it in front of the first decoder layer."""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

from halfv_accel.adapters import family_of
from halfv_accel.adapters.vision import VisionRecorder


@contextmanager
def listening(model, needs=(), layer=-2):
    """``seen.read``: for each forward with pictures, its structure and its signals at all positions by name."""
    family = family_of(model)
    recorder, seen = VisionRecorder(family, needs), SimpleNamespace(read=[], arguments=None)
    seen.recorder = recorder

    def begin(core, args, kwargs):
        seen.arguments = recorder.begin(family.core_arguments(args, kwargs))

    def first(module, args, kwargs):
        if family.modalities(seen.arguments):
            structure = family.structure(seen.arguments["input_ids"], seen.arguments)
            signals = recorder.signals(structure)
            read = {signal: signals.at(signal, asked, structure) for signal, asked in needs}
            seen.read.append((structure, read))

    def generate(**arguments):
        with recorder.call(arguments):
            return model.generate(**arguments, max_new_tokens=2, do_sample=False)

    seen.generate = generate
    with ExitStack() as stack:
        recorder.install(stack)
        stack.callback(model.model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(family.layers[0].register_forward_pre_hook(first, with_kwargs=True).remove)
        stack.callback(model.model.register_forward_hook(lambda *_: recorder.end(), always_call=True).remove)
        yield seen
