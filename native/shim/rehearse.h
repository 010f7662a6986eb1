// SPDX-License-Identifier: MIT

/**
 * @file
 * Whether a seccomp filter would end this process for what the shim is about to do.
 */

#ifndef USW_REHEARSE_H
#define USW_REHEARSE_H

#include <stdbool.h>

/**
 * Return false if the kernel would kill a task for a system call that it takes to talk to the
 * agent, or then to join it and to have hands. One that is refused with an error is none of it:
 * that is seen when it happens. The caller has all signals blocked. Costs 0.3 us where there is no
 * filter.
 */
bool usw_rehearse_connecting(void);
bool usw_rehearse_joining(void);

#endif /* USW_REHEARSE_H */
