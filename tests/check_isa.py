"""Says which functions of the extensions use instructions beyond the baseline of x86-64 (SSE2):

    python tests/check_isa.py [FILE.so ...]

Only kernels_avx2.c and kernels_avx512.c may, and only the table of kernels may lead there: a direct call from
elsewhere would run on every CPU. Ends with 1 if anything else is found.
"""

from __future__ import annotations

import bisect
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

DISPATCHED = {"kernels_avx2.c", "kernels_avx512.c"}
# tzcnt is left out: compilers write it for every x86-64 as "rep bsf", which older CPUs take as bsf
BEYOND = re.compile(
    r"v(?!err|erw)[a-z0-9]+$|k(?:mov|or|and|not|xor|xnor|shift|unpck|test|add)[a-z]*$"
    r"|addsubp[sd]|h(?:add|sub)p[sd]|lddqu|mov(?:ddup|shdup|sldup)|fisttp"
    r"|pabs[bwd]|palignr|ph(?:add|sub)(?:w|d|sw)$|pmaddubsw|pmulhrsw|pshufb|psign[bwd]"
    r"|p?blend|dpp[sd]|extractps|insertps|movntdqa|mpsadbw|packusdw|pcmp(?:eq|gt)q|p(?:extr|insr)[bdq]|phminposuw"
    r"|p(?:max|min)(?:sb|sd|ud|uw)|pmov[sz]x|pmuldq|pmulld|ptest|round[ps][sd]|crc32|pcmp[ei]str"
    r"|popcnt|lzcnt|andn$|bextr|bls(?:i|r|msk)|bzhi|mulx|pdep|pext$|rorx|sarx|shlx|shrx|movbe|adcx|adox|rdrand"
    r"|rdseed|aes|pclmul|sha(?:1|256)|gf2p8"
)


class Scan(NamedTuple):
    """What was found in one file: counts of instructions by source file, and calls into dispatched code."""

    n_instructions: int
    beyond: dict[str, int]
    calls: list[str]


def objdump(*arguments: str) -> str:
    return subprocess.run(["objdump", *arguments], capture_output=True, text=True, check=True).stdout


def owners(path: str) -> tuple[list[int], list[str]]:
    """Addresses of all functions and the source file of each; "" for names seen everywhere."""
    source, found = "", []
    for line in objdump("-t", path).splitlines():
        if match := re.search(r"\bdf \*ABS\*\s+\S+\s*(.*)$", line):
            source = match[1]
        elif match := re.match(r"([0-9a-f]+) \S?.{5}F \.text\S*\s", line):
            found.append((int(match[1], 16), source))
    found.sort()
    return [address for address, _ in found], [source for _, source in found]


def scan(path: str) -> Scan:
    """Every instruction of a shared library that has symbols."""
    addresses, sources = owners(path)

    def owner(address: int) -> str:
        at = bisect.bisect_right(addresses, address) - 1
        return sources[at] if at >= 0 else ""

    n, beyond, calls = 0, {}, []
    pattern = re.compile(r"\s+([0-9a-f]+):\t(?:(?:rep[nz]*|lock|notrack|bnd|data16|cs) )*([a-z0-9]+)\s*(.*)$")
    for line in objdump("-d", "--no-show-raw-insn", path).splitlines():
        if not (match := pattern.match(line)):
            continue
        address, name, operands = int(match[1], 16), match[2], match[3]
        n += 1
        if BEYOND.match(name) or re.search(r"%[yz]mm|%k[0-7]", operands):
            beyond[owner(address)] = beyond.get(owner(address), 0) + 1
        to = re.match(r"([0-9a-f]+) <", operands) if name in ("call", "callq", "jmp", "jmpq") else None
        if to and owner(int(to[1], 16)) in DISPATCHED and owner(address) not in DISPATCHED:
            calls.append(f"{owner(address)}: {line.strip()}")
    return Scan(n, beyond, calls)


def main() -> int:
    good = True
    for path in sys.argv[1:] or [find_spec(f"attnsparse.{name}").origin for name in ("_core", "_core64")]:
        found = scan(path)
        elsewhere = {name: n for name, n in found.beyond.items() if name not in DISPATCHED}
        good = good and not elsewhere and not found.calls and set(found.beyond) == DISPATCHED
        print(
            f"R30: {path.rpartition('/')[2]}: {found.n_instructions:,} instructions, beyond SSE2 "
            f"{sum(found.beyond.values()):,} in {', '.join(sorted(found.beyond))}, elsewhere "
            f"{sum(elsewhere.values())}, direct calls into them {len(found.calls)}"
        )
        print(*elsewhere.items(), *found.calls, sep="\n", end="")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
