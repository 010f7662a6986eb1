// SPDX-License-Identifier: MIT

/**
 * @file
 * A child whose hands cannot be started, as where the number of tasks is limited.
 *
 * A seccomp filter answers the one clone(2) that makes hands with EAGAIN. The child shares evicted
 * memory with its parent, and uses more of its own than the limit: it is served, is not evicted
 * from, and ends as it would without us.
 *
 * Usage: no_hands LIMIT
 */

#include "program.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>

#define PAGES 1024ul

static void forbid_hands(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLONE_VM | CLONE_UNTRACED, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = ARRAY_COUNT(code), .filter = code};

	CHECK_CALL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		skip("seccomp filters are not in this kernel");
}

int main(int argc, char **argv)
{
	CHECK(argc == 2, "usage: no_hands LIMIT");
	limit_bytes = parse_bytes(argv[1]);
	char *start = evicted_pages(PAGES, seed);

	forbid_hands();
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
	expect_child_ok(child, "child without hands");
	evict(start, PAGES);
	verify(start, PAGES, seed, 0, "parent");
	dprintf(STDOUT_FILENO, "no_hands: ok\n");
	return 0;
}
