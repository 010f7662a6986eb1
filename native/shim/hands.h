// SPDX-License-Identifier: MIT

/**
 * @file
 * Raw system calls, and the one function by which the shim starts hands.
 *
 * libc is out of bounds for hands: the memory behind the program's thread-local storage and libc's
 * own variables may be evicted, and only hands could bring it back. The same calls serve the shim,
 * because in a forked child it may do only what a signal handler may, and because they leave the
 * program's errno alone. They return what the kernel returned: a result, or -errno.
 */

#ifndef USW_HANDS_H
#define USW_HANDS_H

#include <stdbool.h>
#include <stdint.h>

#include "../src/uffd_abi.h"
#include "wire.h"

#if !defined(__x86_64__)
#error "the system calls of shim and hands are written for x86-64 only"
#endif

/** Bytes of a signal set as the kernel knows it (libc's sigset_t is longer). */
#define USW_SIGSET_BYTES 8

static inline long usw_raw6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

#define USW_RAW_PAD(n, a, b, c, d, e, f, ...) \
	usw_raw6((long)(n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/** usw_raw(SYS_close, fd): any system call, pointers and integers alike. */
#define usw_raw(...) USW_RAW_PAD(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

/** Whether a call that returns an address has failed. */
static inline bool usw_raw_failed(long result)
{
	return result < 0 && result > -4096;
}

/**
 * Start entry(argument) in a new task on a stack of its own; stack_top is aligned to 16 bytes, and
 * entry must not return. Returns the task's id, or -errno.
 */
static inline long usw_raw_clone(unsigned long flags, uintptr_t stack_top, void (*entry)(void *),
				 void *argument)
{
	register long r10 __asm__("r10") = 0; /* child_tid */
	register long r8 __asm__("r8") = 0;   /* tls */
	register void *r9 __asm__("r9") = argument;
	register void (*r12)(void *) __asm__("r12") = entry;
	long result;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t" /* the outermost frame, for debuggers */
			 "mov %%r9, %%rdi\n\t"
			 "call *%%r12\n\t"
			 "ud2\n"
			 "1:"
			 : "=a"(result)
			 : "0"((long)SYS_clone), "D"(flags), "S"(stack_top), "d"(0L), "r"(r10),
			   "r"(r8), "r"(r9), "r"(r12)
			 : "rcx", "r11", "memory");
	return result;
}

/** What hands is born with. Descriptors are the caller's, who closes them; hands has copies. */
struct usw_hands_start {
	uintptr_t area;
	int uffd;       /* the target's own userfaultfd */
	int out_uffd;   /* the one without events, for the "out" stages */
	int connection; /* to the agent, after the welcome */
	int program;    /* pidfd of the program */
};

/**
 * Start hands. The caller has all signals blocked (hands inherits that) and the area mapped.
 * Returns 0 or -errno; nothing is left running after an error.
 */
int usw_hands_launch(const struct usw_hands_start *start);

#endif /* USW_HANDS_H */
