// SPDX-License-Identifier: MIT

/**
 * @file
 * The rehearsal: every system call of shim and hands, made once by a task that may die of it.
 *
 * A program may forbid itself system calls on pain of death (seccomp(2)), and then fork or execute
 * another. What the shim does in there is not the program's doing, so it must not be what kills
 * it. A filter cannot be asked what it would do. So where there is one, a task of its own, which
 * shares the memory and else nothing, makes each call with arguments that do no more than fail. If
 * the kernel kills that task, the process goes without hands.
 *
 * Whoever adds a system call to shim.c or hands.c adds it here. Filters look at the number of a
 * call, and at flags where those are few and telling: such arguments are the true ones.
 */

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "hands.h"
#include "rehearse.h"

#define STACK_BYTES 1024

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#endif

/*
 * The number and the first arguments: an invalid descriptor, address or process each. What is left
 * out is zero, and does nothing.
 */
static const long calls_to_connect[][4] = {
	{SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC},
	{SYS_setsockopt, -1, SOL_SOCKET, SO_SNDTIMEO},
	{SYS_connect, -1},
	{SYS_getsockopt, -1, SOL_SOCKET, SO_PEERCRED},
	{SYS_geteuid},
	{SYS_poll},
	{SYS_sendmsg, -1},
	{SYS_ppoll, 0, 0, 1},
	{SYS_recvmsg, -1},
	{SYS_recvfrom, -1},
	{SYS_close, -1},
	{SYS_read, -1}, /* also the end of the list */
};

static const long calls_to_join[][4] = {
	{SYS_openat, AT_FDCWD},
	{SYS_memfd_create},
	{SYS_ftruncate, -1},
	{SYS_fcntl, -1, F_ADD_SEALS},
	{SYS_pidfd_open, -1},
	{SYS_getpid},
	{SYS_mmap, 0, 0, PROT_READ | PROT_WRITE},
	{SYS_munmap, 1},
	{SYS_mprotect, 1},
	{SYS_madvise, 1, 0, MADV_DONTFORK},
	{SYS_userfaultfd, -1},
	{SYS_ioctl, -1, UFFDIO_API},
	{SYS_wait4, -1, 0, WNOHANG},
	{SYS_waitid, P_ALL},
	{SYS_getsid},
	{SYS_prctl, PR_GET_CHILD_SUBREAPER},
	{SYS_prctl, PR_SET_NAME},
	{SYS_setsid},
	{SYS_chdir},
	{SYS_gettid},
	{SYS_close_range, ~0u, ~0u},
	{SYS_futex},
	{SYS_clock_gettime},
	{SYS_nanosleep},
	{SYS_sched_yield},
	{SYS_mincore, 1},
	{SYS_munlock},
	{SYS_pidfd_send_signal, -1},
	{SYS_read, -1},
};

static void rehearse_main(void *argument)
{
	const long(*call)[4] = argument;
	/* No core file, nor, as a limit of none would allow, a program that is given one. */
	const struct rlimit no_core = {.rlim_cur = 1, .rlim_max = 1};

	usw_raw(SYS_prlimit64, 0, RLIMIT_CORE, &no_core, NULL);
	do
		usw_raw((*call)[0], (*call)[1], (*call)[2], (*call)[3]);
	while ((*call++)[0] != SYS_read);
	for (;;)
		usw_raw(SYS_exit_group, 0);
}

static bool survives(const long (*calls)[4])
{
	char stack[STACK_BYTES] __attribute__((aligned(64)));
	int status;
	long pid;

	if (usw_raw(SYS_prctl, PR_GET_SECCOMP) == 0)
		return true;
	/* CLONE_VFORK: when it returns, the task has ended, and its stack is ours again. */
	pid = usw_raw_clone(CLONE_VM | CLONE_VFORK, (uintptr_t)stack + sizeof(stack), rehearse_main,
			    (void *)calls);
	return pid > 0 && usw_raw(SYS_wait4, pid, &status, __WALL, 0) == pid && WIFEXITED(status);
}

bool usw_rehearse_connecting(void)
{
	return survives(calls_to_connect);
}

bool usw_rehearse_joining(void)
{
	return survives(calls_to_join);
}
