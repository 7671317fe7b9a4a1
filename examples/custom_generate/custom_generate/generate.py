"""``custom_generate`` recipe: ``generate()`` with a tokenlens spec."""

from tokenlens.hf import generate_kwargs


def generate(model, tokenlens_spec=None, tokenizer=None, **kwargs):
    """Stock ``generate()``, decoding as the spec says.

    Parameters
    ----------
    tokenlens_spec
        A spec, a mapping, or the name of a preset.
    tokenizer
        The model's tokenizer.
    """
    if tokenlens_spec is None:
        raise ValueError(
            "tokenlens_spec: got nothing; allowed: a spec, a mapping or a preset, e.g. 'qwen3-soft'"
        )
    kwargs.pop("custom_generate", None)
    kwargs.pop("trust_remote_code", None)
    own = generate_kwargs(
        model,
        tokenizer,
        tokenlens_spec,
        logits_processor=kwargs.pop("logits_processor", None) or (),
        stopping_criteria=kwargs.pop("stopping_criteria", None) or (),
    )
    return model.generate(**kwargs, **own, tokenizer=tokenizer)
