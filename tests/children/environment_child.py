"""A process with thread variables of its own: what it uses then, and what it is warned of, as JSON."""

import json
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import attnsparse as asp

told = [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
print(json.dumps([asp.get_num_threads(), asp.build_info()["default_threads"], told]))
