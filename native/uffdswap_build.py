# SPDX-License-Identifier: MIT
"""Write the C source of the cffi module ``uffdswap._native``.

The declarations are read from ``include/uffdswap.h``, between its two CDEF marks, so that there is
one description of the C interface and no second one to keep in step. CMake runs this file as
``python uffdswap_build.py OUTPUT``; include paths and libraries are CMake's business.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).parent / "include" / "uffdswap.h"


def declarations(header: str) -> str:
    """Return what stands between the CDEF marks of a header, which must be there once."""
    found = re.findall(r"/\* CDEF begin \*/(.*?)/\* CDEF end \*/", header, re.DOTALL)
    if len(found) != 1:
        raise SystemExit(f"{HEADER}: expected one CDEF section, found {len(found)}")
    return str(found[0])


def builder() -> FFI:
    """Describe the module to cffi."""
    ffi = FFI()
    ffi.cdef(declarations(HEADER.read_text(encoding="utf-8")))
    ffi.set_source("uffdswap._native", '#include "uffdswap.h"')
    return ffi


if __name__ == "__main__":
    builder().emit_c_code(sys.argv[1])
