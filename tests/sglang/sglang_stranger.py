"""A front end without tokenlens, joined to a running engine: what it sends is checked by nobody.

SGLang lets any process of the machine join an engine with several tokenizer workers, and loads no
plugins there. Prints what it got for each request, as JSON.
"""

import json
import sys


def main(pid, requests):
    """Join the engine of a process; send requests one after the other."""
    import sglang
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    engine = sglang.Engine.attach_tokenizer_worker(parent_pid=pid)
    wrapped = hasattr(TokenizerManager._create_tokenized_object, "__tokenlens_original__")
    found = {"wrapped": wrapped}
    for name, sampling in requests.items():
        try:
            one = engine.generate(input_ids=[5, 6, 7], sampling_params=sampling)
            found[name] = {"ids": one["output_ids"], "info": sorted(one["meta_info"])}
        except ValueError as error:
            found[name] = {"error": str(error)}
    print("found " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
