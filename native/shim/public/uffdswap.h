// SPDX-License-Identifier: MIT

/**
 * @file
 * For programs that link the shim (`cc program.c $(uffdswap link-flags)`) instead of preloading it.
 *
 * Linking is all there is to do: before main() the library looks for the standing agent that
 * UFFDSWAP_SOCKET names and joins it. This header is for programs that want to know the result.
 */

#ifndef UFFDSWAP_PROGRAM_H
#define UFFDSWAP_PROGRAM_H

#ifdef __cplusplus
extern "C" {
#endif

/**
 * 1 if an agent manages the memory of this process, so that its limits hold; 0 if the process runs
 * alone, because there is no agent or it was refused. May be called at any time, from any thread.
 */
int uffdswap_is_managed(void);

#ifdef __cplusplus
}
#endif

#endif /* UFFDSWAP_PROGRAM_H */
