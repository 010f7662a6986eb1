# SPDX-License-Identifier: MIT
"""Compare uffdswap with the kernel's own swap: same work, same machine, same run.

`guardian` undoes what was changed on the machine, `group` is a memory cgroup of either version,
`peers` sets up what uffdswap is compared with, `measure` takes one measurement from what `counters`
reads, `evidence` keeps the files of a run that failed, `apps` has ready-made programs, `rounds`
takes the contenders in turn, `results` puts measurements beside each other, `plot` draws them.
Nothing here prints.
"""
