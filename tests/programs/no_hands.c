// SPDX-License-Identifier: MIT

/**
 * @file
 * A child whose hands cannot be started, as where the number of tasks is limited, or is late.
 *
 * A seccomp filter answers the one clone(2) that makes hands with EAGAIN. The child shares evicted
 * memory with its parent, and uses more of its own than the limit: it is served, is not evicted
 * from, and ends as it would without us.
 *
 * Or the call waits for the parent, which needs room meanwhile, as a tracer does that has stopped
 * the child there: then that child has handed itself in, and is nobody to wait for.
 *
 * Usage: no_hands LIMIT [late]
 */

#include "program.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#define PAGES 1024ul

/* What happens to the clone(2) that makes hands. Returns a descriptor if asked for by the flags. */
static int filter_hands(uint32_t action, unsigned int flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLONE_VM, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = ARRAY_COUNT(code), .filter = code};
	int listener;

	CHECK_CALL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
	if (listener < 0)
		skip("seccomp filters are not in this kernel");
	return listener;
}

/* Hands of the child begins only when this is through. A bare run has none. */
static void hold_up_hands(int listener)
{
	struct seccomp_notif call = {0};
	struct seccomp_notif_resp answer = {.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

	if (!limit_bytes)
		return;
	CHECK_CALL(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call));
	for (int round = 0; round < 4; round++)
		press();
	answer.id = call.id;
	CHECK_CALL(ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer));
}

int main(int argc, char **argv)
{
	bool is_late = argc == 3 && !strcmp(argv[2], "late");
	int listener;

	CHECK(argc == 2 || is_late, "usage: no_hands LIMIT [late]");
	limit_bytes = parse_bytes(argv[1]);
	char *start = evicted_pages(PAGES, seed);

	listener = is_late ? filter_hands(SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER)
			   : filter_hands(SECCOMP_RET_ERRNO | EAGAIN, 0);
	pid_t child = fork();
	CHECK_CALL(child);
	if (!child) {
		verify(start, PAGES, seed, 0, "child, as forked");
		fill(start, PAGES, seed + 1, 0);
		for (int round = 0; round < 4; round++)
			press();
		verify(start, PAGES, seed + 1, 0, "child");
		_exit(0);
	}
	if (is_late)
		hold_up_hands(listener);
	expect_child_ok(child, "child without hands");
	evict(start, PAGES);
	verify(start, PAGES, seed, 0, "parent");
	dprintf(STDOUT_FILENO, "no_hands: ok\n");
	return 0;
}
