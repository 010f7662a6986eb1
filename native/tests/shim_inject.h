// SPDX-License-Identifier: MIT

/**
 * @file
 * Failures of UFFDIO_MOVE to order: a seccomp supervisor that answers in the kernel's place.
 *
 * Some failures cannot be had by asking (no memory for a page table, a page that the kernel merges
 * between two moves), and code that nobody has seen run is code that does not work. The filter is
 * in place before the puppet is executed, so hands inherits it.
 */

#ifndef USW_SHIM_INJECT_H
#define USW_SHIM_INJECT_H

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/uio.h>

#include "shim_rig.h"

struct injection {
	int notify_fd;
	int sockets[2];
	pthread_t supervisor;
	_Atomic uint64_t to;  /* fail moves to this address... */
	_Atomic int error;    /* ...with this errno; 0: none... */
	_Atomic int times;    /* ...so many times */
	_Atomic int injected; /* how many have failed */
};

static int inject_send_fd(int socket, int fd)
{
	char byte = 0;
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct iovec vector = {&byte, 1};
	struct msghdr message = {.msg_iov = &vector,
				 .msg_iovlen = 1,
				 .msg_control = control.bytes,
				 .msg_controllen = sizeof(control.bytes)};

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	return sendmsg(socket, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

static int inject_receive_fd(int socket)
{
	char byte;
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec vector = {&byte, 1};
	struct msghdr message = {.msg_iov = &vector,
				 .msg_iovlen = 1,
				 .msg_control = control.bytes,
				 .msg_controllen = sizeof(control.bytes)};
	int fd = -1;

	must(rig_readable(socket, RIG_PATIENCE_MS));
	must(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1);
	must(message.msg_controllen >= CMSG_LEN(sizeof(int)));
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	return fd;
}

/** In the puppet-to-be. Its sendmsg() after the filter is in place is not one of those caught. */
static int inject_install(int socket)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)UFFDIO_MOVE, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
	long fd;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
		     &program);
	return fd < 0 ? -1 : inject_send_fd(socket, (int)fd);
}

/** What one UFFDIO_MOVE shall return: 0 for "do it". */
static int inject_verdict(struct injection *i, const struct seccomp_notif *request)
{
	struct uffdio_move move;
	struct iovec local = {&move, sizeof(move)};
	struct iovec remote = {(void *)(uintptr_t)request->data.args[2], sizeof(move)};

	if (process_vm_readv((pid_t)request->pid, &local, 1, &remote, 1, 0) != sizeof(move))
		return 0;
	if (!i->error || move.dst != i->to || i->injected >= i->times)
		return 0;
	i->injected++;
	return i->error;
}

static void *inject_supervise(void *argument)
{
	struct injection *i = argument;

	for (;;) {
		struct seccomp_notif request = {0};
		struct seccomp_notif_resp response = {0};
		struct pollfd poll_fd = {.fd = i->notify_fd, .events = POLLIN};

		if (poll(&poll_fd, 1, RIG_PATIENCE_MS) != 1 || !(poll_fd.revents & POLLIN))
			return NULL; /* everybody under the filter is gone */
		if (ioctl(i->notify_fd, SECCOMP_IOCTL_NOTIF_RECV, &request))
			continue;
		response.id = request.id;
		response.error = -inject_verdict(i, &request);
		response.flags = response.error ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		ioctl(i->notify_fd, SECCOMP_IOCTL_NOTIF_SEND, &response);
	}
}

/** Start a puppet under the supervisor. */
static struct puppet inject_start(struct injection *i)
{
	struct puppet p;

	memset(i, 0, sizeof(*i));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, i->sockets) == 0);
	p = puppet_start(&(struct puppet_options){.socket_path = rig_path,
						  .before_exec = inject_install,
						  .before_exec_argument = i->sockets[1]});
	close(i->sockets[1]);
	i->notify_fd = inject_receive_fd(i->sockets[0]);
	close(i->sockets[0]);
	must(pthread_create(&i->supervisor, NULL, inject_supervise, i) == 0);
	return p;
}

static void inject_order(struct injection *i, uint64_t to, int error, int times)
{
	i->error = 0;
	i->to = to;
	i->times = times;
	i->injected = 0;
	i->error = error;
}

/** After the puppet and its hands have ended. */
static void inject_end(struct injection *i)
{
	pthread_join(i->supervisor, NULL);
	close(i->notify_fd);
}

#endif /* USW_SHIM_INJECT_H */
