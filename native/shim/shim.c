// SPDX-License-Identifier: MIT

/**
 * @file
 * The shim: preloaded into a target or linked to it (-luffdswap), it introduces the process to the
 * agent and starts hands.
 *
 * All of it happens in the constructor and, for forked children, in a pthread_atfork() handler, on
 * the thread that runs them, with all signals blocked. Afterwards nothing is left in the program
 * but two mappings (the area and the token page): every descriptor is closed again, hands has
 * copies. Whatever goes wrong, all is undone and the program runs as if the shim were not there;
 * the agent sees the connection end. Nothing is ever printed.
 *
 * Between fork() and exec() a child of a threaded program may do only what a signal handler may,
 * and the constructor must leave errno alone: so system calls are raw, and there is no heap.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* secure_getenv */
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "hands.h"
#include "public/uffdswap.h"
#include "rehearse.h"

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 0x0001U
#endif
#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_SEAL_SEAL 0x0001
#define F_SEAL_SHRINK 0x0002
#define F_SEAL_GROW 0x0004
#endif
#ifndef SO_PEERPIDFD /* Linux 6.5 */
#define SO_PEERPIDFD 77
#endif

/* How long a starting program waits for the agent before it goes on alone. */
#define AGENT_TIMEOUT_S 10

/* What the kernel calls every user for whom a user namespace has no number; "nobody" outside. */
#define OVERFLOW_UID 65534u

/** What must be known again in a forked child. Written by the thread that runs introduce(). */
static struct {
	struct sockaddr_un agent;
	uintptr_t token_page;
	uintptr_t last_area; /* a good place for the next one */
} remembered;

/**
 * Nonzero once this process has joined. A program may hold the shim twice, in two versions or from
 * two places, one preloaded and one linked. The dynamic loader makes their exported names one, so
 * the second finds here that there is nothing left to do: to the agent it would be a new image,
 * and the memory of the old one would be given up.
 */
extern int _uffdswap_managed;
__attribute__((visibility("default"))) int _uffdswap_managed;

__attribute__((visibility("default"))) int uffdswap_is_managed(void)
{
	return __atomic_load_n(&_uffdswap_managed, __ATOMIC_RELAXED);
}

static void managed_set(bool is_managed)
{
	__atomic_store_n(&_uffdswap_managed, is_managed, __ATOMIC_RELAXED);
}

/** All that one introduction makes. Descriptors are temporary, the area stays if all went well. */
struct introduction {
	int fds[USW_FD_COUNT]; /* what goes with the hello, by enum usw_hello_fd */
	int out_uffd;
	int connection;
	int program; /* pidfd of this process */
	int device;  /* /dev/userfaultfd, where userfaultfd(2) is refused */
	uintptr_t area;
};

static void close_if_open(int fd)
{
	if (fd >= 0)
		usw_raw(SYS_close, fd);
}

// --- the area -----------------------------------------------------------------------------------

/**
 * Give the memfd its size. A file-size limit (ulimit -f) holds for a memfd as well, and going over
 * it would raise SIGXFSZ in the program; a soft limit is lifted for this one call.
 */
static int memfd_set_size(int fd)
{
	struct rlimit old = {0};
	struct rlimit lifted;
	bool lift;
	long result;

	result = usw_raw(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &old);
	if (result)
		return (int)result;
	if (old.rlim_max < USW_AREA_MEMFD_BYTES)
		return -EFBIG;
	lift = old.rlim_cur < USW_AREA_MEMFD_BYTES;
	lifted = (struct rlimit){.rlim_cur = old.rlim_max, .rlim_max = old.rlim_max};
	if (lift)
		usw_raw(SYS_prlimit64, 0, RLIMIT_FSIZE, &lifted, NULL);
	result = usw_raw(SYS_ftruncate, fd, USW_AREA_MEMFD_BYTES);
	if (lift)
		usw_raw(SYS_prlimit64, 0, RLIMIT_FSIZE, &old, NULL);
	return (int)result;
}

/** Sealed, so that neither side can pull the memory from under the other (SIGBUS). */
static int area_memfd_create(void)
{
	long fd = usw_raw(SYS_memfd_create, "uffdswap-area", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
	long error;

	if (fd < 0)
		return (int)fd;
	error = memfd_set_size((int)fd);
	if (!error)
		error = usw_raw(SYS_fcntl, fd, F_ADD_SEALS,
				F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	if (error) {
		usw_raw(SYS_close, fd);
		return (int)error;
	}
	return (int)fd;
}

static int map_shared(uintptr_t start, size_t bytes, int fd, size_t offset)
{
	long result = usw_raw(SYS_mmap, start, bytes, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, fd, offset);

	if (result != (long)start)
		return -ENOMEM;
	usw_raw(SYS_madvise, start, bytes, MADV_NOHUGEPAGE); // see usw_space_keep_small()
	return 0;
}

/** Ask for private memory, at `hint` if that is free. Returns its address, or -errno. */
static long map_private(uintptr_t hint, size_t bytes)
{
	return usw_raw(SYS_mmap, hint, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/**
 * Find addresses for the area. In a forked child those of the parent's area, which is not there,
 * are free as a rule, and recent kernels align a mapping of this size anyway; where neither holds,
 * map more and cut off what is too much.
 */
static int area_reserve(uintptr_t *ret)
{
	size_t room = USW_AREA_BYTES + USW_HUGE_BYTES;
	long map = map_private(remembered.last_area, USW_AREA_BYTES);
	uintptr_t start;

	if (usw_raw_failed(map))
		return (int)map;
	if (map % USW_HUGE_BYTES == 0) {
		*ret = (uintptr_t)map;
		return 0;
	}
	usw_raw(SYS_munmap, map, USW_AREA_BYTES);
	map = map_private(0, room);
	if (usw_raw_failed(map))
		return (int)map;
	start = ((uintptr_t)map + USW_HUGE_BYTES - 1) & ~(uintptr_t)(USW_HUGE_BYTES - 1);
	if (start > (uintptr_t)map)
		usw_raw(SYS_munmap, map, start - (uintptr_t)map);
	if ((uintptr_t)map + room > start + USW_AREA_BYTES)
		usw_raw(SYS_munmap, start + USW_AREA_BYTES,
			(uintptr_t)map + room - start - USW_AREA_BYTES);
	*ret = start;
	return 0;
}

static void area_unmap(uintptr_t area)
{
	if (area)
		usw_raw(SYS_munmap, area, USW_AREA_BYTES);
}

/** Everything in the reserved range that wire.h says is there. Any failure shows as nonzero. */
static int area_fill(uintptr_t area, int memfd)
{
	uintptr_t stages = area + USW_AREA_STAGE_IN_OFFSET;
	size_t single_bytes = USW_AREA_HUGE_IN_OFFSET - USW_AREA_STAGE_IN_OFFSET;
	long failed = 0;

	failed |= usw_raw(SYS_mprotect, area, USW_AREA_STACK_OFFSET, PROT_NONE);
	failed |= map_shared(area + USW_AREA_RING_OFFSET, USW_RING_BYTES, memfd, 0);
	failed |= map_shared(area + USW_AREA_STANDBY_OFFSET, USW_STANDBY_BYTES, memfd,
			     USW_RING_BYTES);
	/* A kernel without huge pages says EINVAL, and is right. */
	usw_raw(SYS_madvise, stages, single_bytes, MADV_NOHUGEPAGE);
	failed |= usw_raw(SYS_madvise, area, USW_AREA_BYTES, MADV_DONTFORK);
	failed |= usw_raw(SYS_madvise, area, USW_AREA_BYTES, MADV_DONTDUMP);
	return failed ? -ENOMEM : 0;
}

// --- talking to the agent -----------------------------------------------------------------------

/**
 * Whether the listener has our user and group, all of them: it lets us look at its limits. The
 * number of the process is its own as long as its pidfd, taken before, does not say that it ended.
 */
static bool listener_has_our_ids(int connection, pid_t pid)
{
	struct pollfd listener = {.events = POLLIN};
	socklen_t bytes = sizeof(listener.fd);
	struct rlimit limit;
	bool has;

	if (pid <= 0 ||
	    usw_raw(SYS_getsockopt, connection, SOL_SOCKET, SO_PEERPIDFD, &listener.fd, &bytes))
		return false;
	has = usw_raw(SYS_prlimit64, pid, RLIMIT_NOFILE, NULL, &limit) == 0 &&
	      usw_raw(SYS_poll, &listener, 1, 0) == 0;
	usw_raw(SYS_close, listener.fd);
	return has;
}

/**
 * Whether the listener may have what a hello brings, which is all memory of this process: it is of
 * our user, as the agent demands of us, or of root. The path alone proves nothing: the environment
 * that names it outlives the session, and then anybody may make it anew in /tmp. In a user
 * namespace without a number for us, all who have none there look alike and are looked at closer.
 */
static bool listener_is_trusted(int connection)
{
	struct ucred listener;
	socklen_t bytes = sizeof(listener);

	if (usw_raw(SYS_getsockopt, connection, SOL_SOCKET, SO_PEERCRED, &listener, &bytes))
		return false;
	if (listener.uid == 0)
		return true;
	return (long)listener.uid == usw_raw(SYS_geteuid) &&
	       (listener.uid != OVERFLOW_UID || listener_has_our_ids(connection, listener.pid));
}

/** Connect to the agent. Returns the connection, or -errno; for a stranger -ECONNREFUSED, too. */
static int agent_connect(void)
{
	struct timeval timeout = {.tv_sec = AGENT_TIMEOUT_S};
	long result;
	long fd;

	if (!usw_rehearse_connecting())
		return -EPERM;
	fd = usw_raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return (int)fd;
	/* Bounds connect(), which waits where the agent's queue is full, and sendmsg(). */
	result = usw_raw(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	if (!result)
		result = usw_raw(SYS_connect, fd, &remembered.agent, sizeof(remembered.agent));
	if (!result && !listener_is_trusted((int)fd))
		result = -ECONNREFUSED;
	if (result) {
		usw_raw(SYS_close, fd);
		return (int)result;
	}
	return (int)fd;
}

/** Send the hello with the first fd_count descriptors. Returns 0 or -errno. */
static int hello_send(const struct introduction *intro, uint32_t kind, uint64_t token, int fd_count)
{
	struct usw_hello hello = {
		.magic = USW_WIRE_MAGIC,
		.version = USW_WIRE_VERSION,
		.kind = kind,
		.token = token,
		.area_start = intro->area,
		.token_page = remembered.token_page,
	};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int) * USW_FD_COUNT)];
	} control;
	struct iovec vector = {.iov_base = &hello, .iov_len = sizeof(hello)};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
	long sent;

	if (fd_count) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
		memcpy(CMSG_DATA(&control.header), intro->fds, sizeof(int) * fd_count);
	}
	sent = usw_raw(SYS_sendmsg, intro->connection, &message, MSG_NOSIGNAL);
	if (sent < 0)
		return (int)sent;
	return sent == sizeof(hello) ? 0 : -EPROTO;
}

static int wait_readable(int fd)
{
	struct timespec timeout = {.tv_sec = AGENT_TIMEOUT_S};
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
	long ready = usw_raw(SYS_ppoll, &poll_fd, 1, &timeout, NULL, 0);

	if (ready < 0)
		return (int)ready;
	return ready ? 0 : -ETIMEDOUT;
}

/**
 * Wait for the agent's answer. Returns its status, or -errno; *ret_fd is the descriptor that came
 * with it or -1, and is the caller's also after an error.
 */
static int welcome_receive(int connection, int *ret_fd)
{
	struct usw_welcome welcome = {0};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec vector = {.iov_base = &welcome, .iov_len = sizeof(welcome)};
	struct msghdr message = {
		.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	long received;
	int error;

	*ret_fd = -1;
	error = wait_readable(connection);
	if (error)
		return error;
	received = usw_raw(SYS_recvmsg, connection, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (received <= 0)
		return received ? (int)received : -ECONNRESET;
	if (message.msg_controllen >= CMSG_LEN(sizeof(int)) &&
	    control.header.cmsg_level == SOL_SOCKET && control.header.cmsg_type == SCM_RIGHTS)
		memcpy(ret_fd, CMSG_DATA(&control.header), sizeof(int));
	if (received != sizeof(welcome) || welcome.magic != USW_WIRE_MAGIC)
		return -EPROTO;
	if (welcome.version != USW_WIRE_VERSION)
		return -EPROTONOSUPPORT;
	return (int)(welcome.status & INT32_MAX);
}

/** Ask the agent, who may have rights that we lack, for an open /dev/userfaultfd. */
static int device_ask(const struct introduction *intro)
{
	int fd;
	int status = hello_send(intro, USW_HELLO_DEVICE, 0, 0);

	if (status)
		return status;
	status = welcome_receive(intro->connection, &fd);
	if (status == USW_WELCOME_DEVICE && fd >= 0)
		return fd;
	close_if_open(fd);
	return -EPERM;
}

// --- userfaultfd --------------------------------------------------------------------------------

/**
 * A userfaultfd that also serves faults of system calls, by the first way that is allowed. It does
 * not block (poll() on a blocking one always reports an error).
 */
static int userfaultfd_open(struct introduction *intro)
{
	const int flags = O_CLOEXEC | O_NONBLOCK;
	long fd = usw_raw(SYS_userfaultfd, flags);

	if (fd >= 0 || fd == -EMFILE)
		return (int)fd;
	if (intro->device < 0)
		intro->device = (int)usw_raw(SYS_openat, AT_FDCWD, "/dev/userfaultfd",
					     O_RDWR | O_CLOEXEC, 0);
	if (intro->device < 0 && intro->device != -EMFILE)
		intro->device = device_ask(intro);
	if (intro->device < 0)
		return intro->device;
	return (int)usw_raw(SYS_ioctl, intro->device, USERFAULTFD_IOC_NEW, flags);
}

static int out_stage_register(int uffd, uintptr_t start)
{
	struct uffdio_register registration = {
		.range = {.start = start, .len = USW_HUGE_BYTES},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return (int)usw_raw(SYS_ioctl, uffd, UFFDIO_REGISTER, &registration);
}

/** The userfaultfd of the "out" stages: no events, no messages, only a place to MOVE to. */
static int out_uffd_open(struct introduction *intro)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
	int fd = userfaultfd_open(intro);

	if (fd < 0)
		return fd;
	if (usw_raw(SYS_ioctl, fd, UFFDIO_API, &api) ||
	    out_stage_register(fd, intro->area + USW_AREA_STAGE_OUT_OFFSET) ||
	    out_stage_register(fd, intro->area + USW_AREA_HUGE_OUT_OFFSET)) {
		usw_raw(SYS_close, fd);
		return -ENOTSUP;
	}
	return fd;
}

// --- introduction -------------------------------------------------------------------------------

static int proc_open(const char *path)
{
	return (int)usw_raw(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
}

static void intro_init(struct introduction *intro)
{
	for (int i = 0; i < USW_FD_COUNT; i++)
		intro->fds[i] = -1;
	intro->out_uffd = -1;
	intro->connection = -1;
	intro->program = -1;
	intro->device = -1;
	intro->area = 0;
}

/** Close what was opened. The area is the caller's to keep or unmap. */
static void intro_deinit(struct introduction *intro)
{
	for (int i = 0; i < USW_FD_COUNT; i++)
		close_if_open(intro->fds[i]);
	close_if_open(intro->out_uffd);
	close_if_open(intro->connection);
	close_if_open(intro->program);
	close_if_open(intro->device);
}

static int intro_prepare(struct introduction *intro, uint32_t kind)
{
	int error;

	/* First, because it fails at once where there is no agent. */
	intro->connection = agent_connect();
	if (intro->connection < 0)
		return intro->connection;
	if (!usw_rehearse_joining())
		return -EPERM;
	intro->fds[USW_FD_MAPS] = proc_open("/proc/self/maps");
	intro->fds[USW_FD_PAGEMAP] = proc_open("/proc/self/pagemap");
	intro->fds[USW_FD_SMAPS] = proc_open("/proc/self/smaps");
	intro->fds[USW_FD_AREA] = area_memfd_create();
	intro->program = (int)usw_raw(SYS_pidfd_open, usw_raw(SYS_getpid), 0);
	for (int i = 0; i <= USW_FD_AREA; i++) {
		if (intro->fds[i] < 0)
			return intro->fds[i];
	}
	if (intro->program < 0)
		return intro->program;

	error = area_reserve(&intro->area);
	if (!error)
		error = area_fill(intro->area, intro->fds[USW_FD_AREA]);
	if (error)
		return error;
	intro->out_uffd = out_uffd_open(intro);
	if (intro->out_uffd < 0)
		return intro->out_uffd;
	if (kind == USW_HELLO_FORK) /* the kernel has made it already, and the agent has it */
		return 0;
	intro->fds[USW_FD_UFFD] = userfaultfd_open(intro);
	return intro->fds[USW_FD_UFFD] < 0 ? intro->fds[USW_FD_UFFD] : 0;
}

static int intro_handshake(struct introduction *intro, uint32_t kind, uint64_t token)
{
	bool is_fork = kind == USW_HELLO_FORK;
	int error = hello_send(intro, kind, token, is_fork ? USW_FD_UFFD : USW_FD_COUNT);
	int status;
	int fd;

	if (error)
		return error;
	status = welcome_receive(intro->connection, &fd);
	if (is_fork)
		intro->fds[USW_FD_UFFD] = fd;
	else
		close_if_open(fd);
	if (status < 0)
		return status;
	if (status != USW_WELCOME_OK)
		return -EPERM;
	return intro->fds[USW_FD_UFFD] < 0 ? -EPROTO : 0;
}

/**
 * Tell the agent that this image cannot join, and wait for its word, which is the connection's end:
 * where the program must not run without a limit, the connection is held until that is killed.
 */
static void give_up(const struct introduction *intro, int error)
{
	if (!hello_send(intro, USW_HELLO_GIVE_UP, (uint64_t)-error, 0))
		wait_readable(intro->connection);
}

/** Meet the agent and start hands. Returns 0, or -errno with nothing left behind. */
static int introduce(uint32_t kind, uint64_t token)
{
	struct introduction intro;
	int error;

	intro_init(&intro);
	error = intro_prepare(&intro, kind);
	if (error && intro.connection >= 0 && kind == USW_HELLO_IMAGE)
		give_up(&intro, error);
	if (!error)
		error = intro_handshake(&intro, kind, token);
	if (!error) {
		struct usw_hands_start start = {
			.area = intro.area,
			.uffd = intro.fds[USW_FD_UFFD],
			.out_uffd = intro.out_uffd,
			.connection = intro.connection,
			.program = intro.program,
		};

		error = usw_hands_launch(&start);
	}
	if (error)
		area_unmap(intro.area);
	else
		remembered.last_area = intro.area;
	intro_deinit(&intro);
	return error;
}

// --- the token page -----------------------------------------------------------------------------

/** See wire.h. The parent never touches it; in a child its content is what the agent says. */
static uintptr_t token_page_map(void)
{
	long page = usw_raw(SYS_mmap, NULL, USW_PAGE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (usw_raw_failed(page))
		return 0;
	if (usw_raw(SYS_madvise, page, USW_PAGE_BYTES, MADV_WIPEONFORK)) {
		usw_raw(SYS_munmap, page, USW_PAGE_BYTES);
		return 0;
	}
	return (uintptr_t)page;
}

// --- joining ------------------------------------------------------------------------------------

/** Take a path from outside as the agent's address. False: it cannot be one, or is NULL. */
static bool agent_address_set(const char *path)
{
	size_t length;

	if (!path || path[0] != '/')
		return false;
	length = strlen(path);
	if (length >= sizeof(remembered.agent.sun_path))
		return false;
	remembered.agent.sun_family = AF_UNIX;
	memcpy(remembered.agent.sun_path, path, length + 1);
	return true;
}

/**
 * Ask a standing agent for a session and make that session's socket the agent's address. A forked
 * child must not change its environment, whose lock another thread may have held.
 */
static bool session_ask(bool is_child)
{
	struct usw_session_welcome answer = {0};
	struct introduction intro;
	bool joined = false;
	int saved_errno = errno;

	intro_init(&intro);
	intro.connection = agent_connect();
	if (intro.connection >= 0 && !hello_send(&intro, USW_HELLO_JOIN, 0, 0) &&
	    !wait_readable(intro.connection) &&
	    usw_raw(SYS_recvfrom, intro.connection, &answer, sizeof(answer), MSG_DONTWAIT, NULL,
		    NULL) == sizeof(answer) &&
	    answer.welcome.magic == USW_WIRE_MAGIC && answer.welcome.version == USW_WIRE_VERSION &&
	    answer.welcome.status == USW_WELCOME_SESSION &&
	    memchr(answer.path, 0, sizeof(answer.path)))
		joined = agent_address_set(answer.path) &&
			 (is_child || !setenv("_UFFDSWAP_SOCKET", answer.path, 1));
	intro_deinit(&intro);
	errno = saved_errno;
	return joined;
}

/**
 * Introduce this image, or a forked child of which nobody knows, to the session that it was started
 * in; if that is no more, to a new one of the standing agent that the user has named. A session ends
 * with its last process, which may be just now: then it hangs up, and is not there at the second
 * try. 0 or -errno.
 */
static int session_introduce(bool is_child)
{
	const struct sockaddr_un session = remembered.agent;
	const char *standing = secure_getenv("UFFDSWAP_SOCKET");
	int error = introduce(USW_HELLO_IMAGE, 0);

	if (standing && (error == -ECONNRESET || error == -EPIPE))
		error = introduce(USW_HELLO_IMAGE, 0);
	if ((error != -ECONNREFUSED && error != -ENOENT) || !agent_address_set(standing))
		return error;
	if (session_ask(is_child))
		error = introduce(USW_HELLO_IMAGE, 0);
	if (error)
		remembered.agent = session; // for children of its own
	return error;
}

/** Introduce this image to its session, or to a new one if it has none. False: to nobody. */
static bool image_introduce(void)
{
	const char *disable = secure_getenv("UFFDSWAP_DISABLE");

	if (disable && !strcmp(disable, "1"))
		return false;
	if (agent_address_set(secure_getenv("_UFFDSWAP_SOCKET")))
		return !session_introduce(false);
	return agent_address_set(secure_getenv("UFFDSWAP_SOCKET")) && session_ask(false) &&
	       !introduce(USW_HELLO_IMAGE, 0);
}

// --- entry points -------------------------------------------------------------------------------

static void signals_set(int how, const uint64_t *set, uint64_t *old)
{
	usw_raw(SYS_rt_sigprocmask, how, set, old, USW_SIGSET_BYTES);
}

/** In every forked child, before fork() returns there. A child that fails here is still served. */
static void child_after_fork(void)
{
	const uint64_t all = ~UINT64_C(0);
	uint64_t old;
	uint64_t token;
	int error;

	signals_set(SIG_BLOCK, &all, &old);
	token = *(const volatile uint64_t *)remembered.token_page;
	error = token ? introduce(USW_HELLO_FORK, token) : session_introduce(true);
	managed_set(token || !error);
	signals_set(SIG_SETMASK, &old, NULL);
}

static bool is_wanted(void)
{
	return secure_getenv("_UFFDSWAP_SOCKET") || secure_getenv("UFFDSWAP_SOCKET");
}

__attribute__((constructor)) static void shim_start(void)
{
	const uint64_t all = ~UINT64_C(0);
	uint64_t old;

	if (!is_wanted() || uffdswap_is_managed())
		return;
	signals_set(SIG_BLOCK, &all, &old);
	remembered.token_page = token_page_map();
	if (remembered.token_page) {
		managed_set(image_introduce());
		if (uffdswap_is_managed())
			pthread_atfork(NULL, NULL, child_after_fork);
		else
			usw_raw(SYS_munmap, remembered.token_page, USW_PAGE_BYTES);
	}
	signals_set(SIG_SETMASK, &old, NULL);
}
