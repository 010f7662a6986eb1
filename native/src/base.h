// SPDX-License-Identifier: MIT

/**
 * @file
 * What every file of the data plane leans on: assertions, clean-up, small arithmetic.
 *
 * A pager that goes on after it has noticed a contradiction corrupts somebody's memory, so
 * usw_assert() stays in release builds: the agent aborts, the launcher kills the targets and says
 * so. usw_assert_debug() is for checks that cost more than a compare.
 */

#ifndef USW_BASE_H
#define USW_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "../shim/wire.h"

/* Where the addresses of a program end. */
#define USW_ADDRESS_END ((uint64_t)1 << 47)

#define usw_likely(x) __builtin_expect(!!(x), 1)
#define usw_unlikely(x) __builtin_expect(!!(x), 0)

_Noreturn void usw_assert_failed(const char *expression, const char *file, int line);

#define usw_assert(x) \
	do { \
		if (usw_unlikely(!(x))) \
			usw_assert_failed(#x, __FILE__, __LINE__); \
	} while (0)

#ifdef USW_DEBUG
#define usw_assert_debug(x) usw_assert(x)
#else
#define usw_assert_debug(x) ((void)0)
#endif

/** Reads that may race by design: what they return is proved by a hash before it is used. */
#if defined(__SANITIZE_THREAD__)
#define USW_OPTIMISTIC __attribute__((no_sanitize("thread"), noinline))
#else
#define USW_OPTIMISTIC
#endif

static inline void usw_cleanup_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void usw_cleanup_free(void *pointer)
{
	free(*(void **)pointer);
}

#define _cleanup_close_ __attribute__((cleanup(usw_cleanup_close)))
#define _cleanup_free_ __attribute__((cleanup(usw_cleanup_free)))

static inline uint64_t usw_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t usw_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline uint64_t usw_page_floor(uint64_t address)
{
	return address & ~(uint64_t)(USW_PAGE_BYTES - 1);
}

static inline uint64_t usw_clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/** Monotonic time in nanoseconds; about 25 ns, no system call. */
static inline uint64_t usw_now_ns(void)
{
	return usw_clock_ns(CLOCK_MONOTONIC);
}

/** What the calling thread has worked: not how long it waited for a processor. One system call. */
static inline uint64_t usw_processor_ns(void)
{
	return usw_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/** True if a condition has held at each call for so long. `since_ns` is 0 to begin with. */
static inline bool usw_lasts(uint64_t *since_ns, bool holds, uint64_t for_ns)
{
	if (!holds)
		*since_ns = 0;
	else if (!*since_ns)
		*since_ns = usw_now_ns();
	return holds && usw_now_ns() - *since_ns > for_ns;
}

static inline void usw_cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield" ::: "memory");
#endif
}

/**
 * Wait until another thread is not in the middle of what it counts in and out of: if the counter is
 * odd, for its next change. Blocks for microseconds, or until that thread gets its processor back.
 */
static inline void usw_wait_while_odd(_Atomic uint32_t *counter)
{
	uint32_t seen = atomic_load(counter);

	for (uint32_t i = 1; (seen & 1) && atomic_load(counter) == seen; i++) {
		usw_cpu_relax();
		if (i % 1024 == 0)
			usleep(20);
	}
}

#endif /* USW_BASE_H */
