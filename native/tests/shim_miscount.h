// SPDX-License-Identifier: MIT

/**
 * @file
 * A kernel that moves pages and does not count them, as Linux 6.18 does now and then: a tracer lets
 * one UFFDIO_MOVE of hands happen and then changes what it says.
 */

#ifndef USW_SHIM_MISCOUNT_H
#define USW_SHIM_MISCOUNT_H

#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#include "shim_rig.h"

struct miscount {
	pid_t hands;
	uint64_t to;      /* of the move that is not counted... */
	int64_t counted;  /* ...but for so many bytes */
	uint32_t *raised; /* an event comes in between, and raises this; NULL: none does */
	bool is_permitted;
	_Atomic bool is_ready;
	pthread_t tracer;
};

/** At the end of a system call: if it is the move, say that less was moved. True: it was. */
static bool miscount_one(const struct miscount *m)
{
	struct user_regs_struct registers;
	struct uffdio_move move;
	struct iovec local = {&move, sizeof(move)}, remote = {.iov_len = sizeof(move)};

	must(ptrace(PTRACE_GETREGS, m->hands, NULL, &registers) == 0);
	remote.iov_base = (void *)(uintptr_t)registers.rdx;
	if (registers.orig_rax != SYS_ioctl || (uint32_t)registers.rsi != (uint32_t)UFFDIO_MOVE ||
	    process_vm_readv(m->hands, &local, 1, &remote, 1, 0) != sizeof(move) ||
	    move.dst != m->to || move.move <= 0)
		return false;
	move.move = m->counted ? m->counted : -EEXIST;
	registers.rax = (unsigned long)(m->counted ? -EAGAIN : -EEXIST);
	if (m->raised)
		__atomic_fetch_add(m->raised, 1, __ATOMIC_SEQ_CST);
	must(process_vm_writev(m->hands, &local, 1, &remote, 1, 0) == sizeof(move));
	must(ptrace(PTRACE_SETREGS, m->hands, NULL, &registers) == 0);
	return true;
}

static void *miscount_trace(void *argument)
{
	struct miscount *m = argument;
	bool is_over = false;
	int status;

	m->is_permitted = ptrace(PTRACE_SEIZE, m->hands, NULL, (void *)PTRACE_O_TRACESYSGOOD) ==
				  0 &&
			  ptrace(PTRACE_INTERRUPT, m->hands, NULL, NULL) == 0;
	m->is_ready = true;
	for (bool is_end = false; m->is_permitted && !is_over;) {
		must(waitpid(m->hands, &status, __WALL) == m->hands && WIFSTOPPED(status));
		if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			is_over = is_end && miscount_one(m);
			is_end = !is_end;
		}
		must(ptrace(is_over ? PTRACE_DETACH : PTRACE_SYSCALL, m->hands, NULL, NULL) == 0);
	}
	return NULL;
}

/** A move of hands is not counted. False: tracing is not permitted here. */
static bool miscount_order(struct miscount *m)
{
	must(pthread_create(&m->tracer, NULL, miscount_trace, m) == 0);
	must(rig_wait_for(m->is_ready));
	if (!m->is_permitted)
		pthread_join(m->tracer, NULL);
	return m->is_permitted;
}

/** Once the move was made. */
static void miscount_end(struct miscount *m)
{
	pthread_join(m->tracer, NULL);
}

#endif /* USW_SHIM_MISCOUNT_H */
