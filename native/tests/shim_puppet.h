// SPDX-License-Identifier: MIT

/**
 * @file
 * The puppet: a target program that does what test_shim.c tells it, over a socket it was born with.
 *
 * It is the test program itself, executed with PUPPET_ARGUMENT, so that no second file has to be
 * found. Each request gets one reply, from the thread that did the work. The sockets for it and
 * for its forked descendants are descriptors PUPPET_SOCKET and on.
 */

#ifndef USW_SHIM_PUPPET_H
#define USW_SHIM_PUPPET_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wire.h"

#define PUPPET_ARGUMENT "--puppet"
#define PUPPET_SOCKET 3
#define PUPPET_GENERATIONS 3

enum puppet_op {
	PUPPET_REPORT,
	PUPPET_MAP,      /* pages, huge: whole huge pages; returns address, filled with pattern */
	PUPPET_FILL,     /* address, pages, seed */
	PUPPET_CHECK,    /* address, pages, seed: how many pages differ */
	PUPPET_ZEROS,    /* address, pages: how many pages are not all zeros */
	PUPPET_PUNCH,    /* address, pages: MADV_DONTNEED */
	PUPPET_UNMAP,    /* address, pages: on a thread that is not waited for */
	PUPPET_JOIN,     /* wait for that thread */
	PUPPET_LOCK_NOW, /* mlockall(MCL_CURRENT) */
	PUPPET_FORBID,   /* socket(2), on pain of death: for itself and its descendants */
	PUPPET_FORK,     /* the child answers on the next socket; returns its pid */
	PUPPET_REAP,     /* wait for any child; returns its status */
	PUPPET_EXIT,
};

struct puppet_request {
	uint32_t op;
	uint32_t pages;
	uint64_t address;
	uint64_t seed;
	int huge;
};

/** What a program could notice. Two of them are compared byte for byte. */
struct puppet_report {
	uint64_t open_fds; /* a bit each */
	uint64_t blocked_signals;
	uint64_t pending_signals;
	int fd_count;
	int thread_count;
	int task_count;
	int start_errno;
	int wait_result;
	int wait_errno;
	int children_listed;
	int unshare_errno;
};

struct puppet_reply {
	int64_t value;
	uint64_t address;
	struct puppet_report report;
	int area_mappings; /* of the area memfd in our maps */
};

static inline uint64_t pattern_word(uint64_t seed, uint64_t page, uint64_t word)
{
	uint64_t x = (seed * 0x9e3779b97f4a7c15u) ^ (page << 20) ^ word;

	x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
	return x ^ (x >> 29);
}

static inline void pattern_fill(uint64_t *words, uint64_t seed, uint64_t page)
{
	for (uint64_t k = 0; k < USW_PAGE_BYTES / 8; k++)
		words[k] = pattern_word(seed, page, k);
}

static inline int pattern_matches(const uint64_t *words, uint64_t seed, uint64_t page)
{
	for (uint64_t k = 0; k < USW_PAGE_BYTES / 8; k++) {
		if (words[k] != pattern_word(seed, page, k))
			return 0;
	}
	return 1;
}

/** A number after `name` in /proc/self/status, in the given base. */
static uint64_t puppet_status_field(const char *name, int base)
{
	char line[256];
	uint64_t value = UINT64_MAX;
	FILE *status = fopen("/proc/self/status", "re");

	while (status && fgets(line, sizeof(line), status)) {
		if (!strncmp(line, name, strlen(name)))
			value = strtoull(line + strlen(name), NULL, base);
	}
	if (status)
		fclose(status);
	return value;
}

static int puppet_count_lines(const char *path, const char *needle)
{
	char line[512];
	int count = 0;
	FILE *file = fopen(path, "re");

	while (file && fgets(line, sizeof(line), file))
		count += strstr(line, needle) != NULL;
	if (file)
		fclose(file);
	return count;
}

/** What a process with a second thread may not do. */
static int puppet_try_unshare(void)
{
	return unshare(CLONE_THREAD | CLONE_FS) ? errno : 0;
}

static void puppet_report(struct puppet_reply *reply, int start_errno)
{
	struct puppet_report *report = &reply->report;
	char path[64];
	struct stat info;

	for (int fd = 0; fd < 1024; fd++) {
		if (fstat(fd, &info) == 0) {
			report->fd_count++;
			report->open_fds |= UINT64_C(1) << (fd % 64);
		}
	}
	report->blocked_signals = puppet_status_field("SigBlk:", 16);
	report->pending_signals = puppet_status_field("ShdPnd:", 16);
	report->thread_count = (int)puppet_status_field("Threads:", 10);
	report->task_count = stat("/proc/self/task", &info) ? -1 : (int)info.st_nlink - 2;
	report->start_errno = start_errno;
	errno = 0;
	report->wait_result = waitpid(-1, NULL, WNOHANG | __WALL);
	report->wait_errno = errno;
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	report->children_listed = puppet_count_lines(path, " ");
	report->unshare_errno = puppet_try_unshare();
	reply->area_mappings = puppet_count_lines("/proc/self/maps", "uffdswap-area");
}

static uint64_t puppet_map(const struct puppet_request *request)
{
	size_t bytes = (size_t)request->pages * USW_PAGE_BYTES;
	size_t room = bytes + (request->huge ? USW_HUGE_BYTES : 0);
	char *start = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t address = (uintptr_t)start;

	if (start == MAP_FAILED)
		return 0;
	if (request->huge)
		address = (address + USW_HUGE_BYTES - 1) & ~(uintptr_t)(USW_HUGE_BYTES - 1);
	madvise((void *)address, bytes, request->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (uint32_t i = 0; i < request->pages; i++)
		pattern_fill((uint64_t *)(address + (uint64_t)i * USW_PAGE_BYTES), request->seed,
			     i);
	return address;
}

static int64_t puppet_check(const struct puppet_request *request)
{
	static const uint64_t zeros[USW_PAGE_BYTES / 8];
	int64_t wrong = 0;

	for (uint32_t i = 0; i < request->pages; i++) {
		const void *page = (const void *)(request->address + (uint64_t)i * USW_PAGE_BYTES);

		if (request->op == PUPPET_ZEROS)
			wrong += memcmp(page, zeros, sizeof(zeros)) != 0;
		else
			wrong += !pattern_matches(page, request->seed, i);
	}
	return wrong;
}

static void *puppet_unmap(void *argument)
{
	const struct puppet_request *request = argument;

	munmap((void *)request->address, (size_t)request->pages * USW_PAGE_BYTES);
	return NULL;
}

/** Returns 0, or -1: so it may run before exec as well. */
static int puppet_forbid(int system_call)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)system_call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int64_t puppet_wait_any(void)
{
	int status = -1;

	return waitpid(-1, &status, 0) < 0 ? -errno : status;
}

static int puppet_main(void)
{
	static struct puppet_request unmap_request;
	int start_errno = errno;
	int socket = PUPPET_SOCKET;
	struct puppet_request request;
	pthread_t unmapper;
	pid_t child;

	while (recv(socket, &request, sizeof(request), 0) == sizeof(request)) {
		struct puppet_reply reply = {0};

		switch ((enum puppet_op)request.op) {
		case PUPPET_REPORT:
			puppet_report(&reply, start_errno);
			break;
		case PUPPET_MAP:
			reply.address = puppet_map(&request);
			break;
		case PUPPET_FILL:
			for (uint32_t i = 0; i < request.pages; i++)
				pattern_fill((uint64_t *)(request.address +
							  (uint64_t)i * USW_PAGE_BYTES),
					     request.seed, i);
			break;
		case PUPPET_CHECK:
		case PUPPET_ZEROS:
			reply.value = puppet_check(&request);
			break;
		case PUPPET_PUNCH:
			reply.value = madvise((void *)request.address,
					      (size_t)request.pages * USW_PAGE_BYTES,
					      MADV_DONTNEED);
			break;
		case PUPPET_UNMAP:
			unmap_request = request;
			reply.value = pthread_create(&unmapper, NULL, puppet_unmap, &unmap_request);
			break;
		case PUPPET_JOIN:
			reply.value = pthread_join(unmapper, NULL);
			break;
		case PUPPET_LOCK_NOW:
			reply.value = mlockall(MCL_CURRENT) ? -errno : 0;
			break;
		case PUPPET_FORBID:
			reply.value = puppet_forbid(SYS_socket);
			break;
		case PUPPET_FORK:
			child = fork();
			if (child == 0) {
				socket++;
				continue;
			}
			reply.value = child;
			break;
		case PUPPET_REAP:
			reply.value = puppet_wait_any();
			break;
		case PUPPET_EXIT:
			return 0;
		}
		send(socket, &reply, sizeof(reply), MSG_NOSIGNAL);
	}
	return 0;
}

#endif /* USW_SHIM_PUPPET_H */
