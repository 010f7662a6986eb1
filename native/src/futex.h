// SPDX-License-Identifier: MIT

/**
 * @file
 * Sleeping on a word of this process until somebody wakes who does (futex(2)).
 *
 * A sleep may end for no reason: whoever sleeps looks again. Any thread.
 */

#ifndef USW_FUTEX_H
#define USW_FUTEX_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/** Sleep while a word is what it was seen to be. `timeout`: for so long at the most; NULL: for ever. */
static inline void usw_futex_wait(_Atomic uint32_t *word, uint32_t seen,
				  const struct timespec *timeout)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, timeout, NULL, 0);
}

/** Wake as many of those who sleep on a word. */
static inline void usw_futex_wake(_Atomic uint32_t *word, uint32_t count)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

#endif /* USW_FUTEX_H */
