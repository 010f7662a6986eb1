// SPDX-License-Identifier: MIT

/**
 * @file
 * A fake agent for test_shim.c: the agent's side of wire.h, done the plainest way.
 *
 * One server thread per armed target reads its userfaultfd (inside the gate) and answers faults
 * from the copies that rig_evict() keeps. The test's own thread gives commands and holds
 * target->lock while an eviction runs, so that a fault on a page in flight waits for its end.
 */

#ifndef USW_SHIM_RIG_H
#define USW_SHIM_RIG_H

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <time.h>

#include "../src/uffd_abi.h"
#include "shim_puppet.h"

static int failures;
static const char *rig_test = "start"; /* what is running, for the messages */

/** Run a test, by its name; its value, if it has one, says whether it could be run. */
#define run(test) (rig_test = #test, test())

#define check(x) \
	do { \
		if (!(x)) { \
			printf("%s:%d: %s failed: %s\n", __FILE__, __LINE__, rig_test, #x); \
			failures++; \
		} \
	} while (0)

/* For what the test cannot go on without. Puppets die with us (PR_SET_PDEATHSIG). */
#define must(x) \
	do { \
		if (!(x)) { \
			printf("%s:%d: %s cannot go on: %s (errno %d)\n", __FILE__, __LINE__, \
			       rig_test, #x, errno); \
			exit(1); \
		} \
	} while (0)

#define RIG_PATIENCE_MS 20000
#define RIG_STORED_MAX 4096
#define RIG_PENDING_MAX 64

struct stored_page {
	uint64_t address; /* 0: not in use */
	uint8_t *content;
};

struct target {
	int connection;
	int pidfd;
	int uffd;
	int fds[USW_FD_COUNT];
	struct usw_hello hello;
	struct usw_ring *ring;
	uint8_t *standby;
	uint32_t seq;
	uint64_t token; /* for a forked child: what its token page says */

	pthread_mutex_t lock; /* stored; held through an eviction */
	struct stored_page stored[RIG_STORED_MAX];
	pthread_t server;
	bool has_server;
	int stop_fd;
	_Atomic bool deaf;            /* the server leaves messages unread */
	struct target *_Atomic child; /* of the last fork event */
};

struct puppet {
	pid_t pid;
	int sockets[PUPPET_GENERATIONS];
};

static int rig_listener = -1;
static char rig_folder[64];
static char rig_path[96];

// --- small things -------------------------------------------------------------------------------

static uint64_t rig_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000u + now.tv_nsec / 1000000;
}

static bool rig_readable(int fd, int timeout_ms)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	return poll(&poll_fd, 1, timeout_ms) == 1;
}

/** Wait until the expression is true, looking again every millisecond; a bound for a hang only. */
#define rig_wait_for(x) \
	({ \
		uint64_t rig_end_ms = rig_now_ms() + RIG_PATIENCE_MS; \
		bool rig_seen; \
		while (!(rig_seen = (x)) && rig_now_ms() < rig_end_ms) \
			poll(NULL, 0, 1); \
		rig_seen; \
	})

static void rig_close(void)
{
	close(rig_listener);
	unlink(rig_path);
	rmdir(rig_folder);
}

/** rig_close() is left to exit(), so that it runs as well when the test cannot go on. */
static void rig_open(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strcpy(rig_folder, "/tmp/usw-test-shim-XXXXXX");
	must(mkdtemp(rig_folder));
	chmod(rig_folder, 0711);
	snprintf(rig_path, sizeof(rig_path), "%s/agent", rig_folder);
	atexit(rig_close);
	strcpy(address.sun_path, rig_path);
	rig_listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	must(rig_listener >= 0);
	must(bind(rig_listener, (struct sockaddr *)&address, sizeof(address)) == 0);
	chmod(rig_path, 0666);
	must(listen(rig_listener, 64) == 0);
}

// --- puppets ------------------------------------------------------------------------------------

struct puppet_options {
	const char *socket_path; /* NULL: no _UFFDSWAP_SOCKET */
	const char *extra_env;
	uid_t uid;         /* 0: stay */
	rlim_t fsize_soft; /* 0: leave alone */
	rlim_t fsize_hard;
	rlim_t nofile_soft;      /* 0: leave alone */
	int (*before_exec)(int); /* runs in the child with the argument below */
	int before_exec_argument;
};

static const char *rig_shim_path(void)
{
	static char path[512];
	const char *chosen = getenv("USW_SHIM");
	ssize_t length;

	if (chosen)
		return chosen;
	length = readlink("/proc/self/exe", path, sizeof(path) - 64);
	must(length > 0);
	path[length] = 0;
	strcpy(strrchr(path, '/'), "/libuffdswap.so");
	if (access(path, R_OK)) {
		path[length] = 0;
		*strrchr(path, '/') = 0;
		strcpy(strrchr(path, '/'), "/libuffdswap.so");
	}
	return path;
}

static void puppet_exec(const struct puppet_options *options, const int *sockets)
{
	char preload[600];
	char socket_env[160];
	char *environment[4] = {preload};
	char *arguments[] = {(char *)"puppet", (char *)PUPPET_ARGUMENT, NULL};
	struct rlimit fsize = {options->fsize_soft, options->fsize_hard};
	struct rlimit nofile = {options->nofile_soft, 1024};
	int count = 1;

	snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", rig_shim_path());
	snprintf(socket_env, sizeof(socket_env), "_UFFDSWAP_SOCKET=%s",
		 options->socket_path ? options->socket_path : "");
	if (options->socket_path)
		environment[count++] = socket_env;
	if (options->extra_env)
		environment[count++] = (char *)options->extra_env;
	/* First out of the way of where they go. */
	for (int i = 0; i < PUPPET_GENERATIONS; i++)
		dup2(sockets[i], 100 + i);
	for (int i = 0; i < PUPPET_GENERATIONS; i++)
		dup2(100 + i, PUPPET_SOCKET + i);
	if (options->before_exec && options->before_exec(options->before_exec_argument))
		_exit(99);
	syscall(SYS_close_range, PUPPET_SOCKET + PUPPET_GENERATIONS, ~0u, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (options->fsize_hard)
		setrlimit(RLIMIT_FSIZE, &fsize);
	if (options->nofile_soft)
		setrlimit(RLIMIT_NOFILE, &nofile);
	if (options->uid && setresuid(options->uid, options->uid, options->uid))
		_exit(98);
	if (options->uid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	execve("/proc/self/exe", arguments, environment);
	_exit(97);
}

static struct puppet puppet_start(const struct puppet_options *options)
{
	struct puppet puppet;
	int theirs[PUPPET_GENERATIONS];

	for (int i = 0; i < PUPPET_GENERATIONS; i++) {
		int pair[2];

		must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
		puppet.sockets[i] = pair[0];
		theirs[i] = pair[1];
	}
	fflush(stdout);
	puppet.pid = fork();
	must(puppet.pid >= 0);
	if (puppet.pid == 0)
		puppet_exec(options, theirs);
	for (int i = 0; i < PUPPET_GENERATIONS; i++)
		close(theirs[i]);
	return puppet;
}

static void puppet_send(const struct puppet *p, int who, struct puppet_request request)
{
	check(send(p->sockets[who], &request, sizeof(request), MSG_NOSIGNAL) == sizeof(request));
}

static struct puppet_reply puppet_receive(const struct puppet *p, int who)
{
	struct puppet_reply reply = {.value = -EPIPE};

	must(rig_readable(p->sockets[who], RIG_PATIENCE_MS));
	check(recv(p->sockets[who], &reply, sizeof(reply), 0) == sizeof(reply));
	return reply;
}

/** Have a request done by the puppet (who = 0), its child (1), or that one's child (2). */
static struct puppet_reply puppet_do(const struct puppet *p, int who, struct puppet_request request)
{
	puppet_send(p, who, request);
	return puppet_receive(p, who);
}

/** Wait for a process to end. Returns its wait status. */
static int rig_reap(pid_t pid)
{
	int status = -1;

	check(rig_wait_for(waitpid(pid, &status, WNOHANG | __WALL) == pid));
	return status;
}

static void puppet_end(struct puppet *p)
{
	for (int i = 0; i < PUPPET_GENERATIONS; i++)
		close(p->sockets[i]);
	check(rig_reap(p->pid) == 0);
}

// --- handshake ----------------------------------------------------------------------------------

static int rig_receive_hello(struct target *t)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int) * 16)];
	} control;
	struct iovec vector = {.iov_base = &t->hello, .iov_len = sizeof(t->hello)};
	struct msghdr message = {
		.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct cmsghdr *header;
	int count = 0;

	must(rig_readable(t->connection, RIG_PATIENCE_MS));
	if (recvmsg(t->connection, &message, MSG_CMSG_CLOEXEC) != sizeof(t->hello))
		return -1;
	header = CMSG_FIRSTHDR(&message);
	if (header) {
		count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		must(count <= USW_FD_COUNT);
		memcpy(t->fds, CMSG_DATA(header), count * sizeof(int));
	}
	check(t->hello.magic == USW_WIRE_MAGIC);
	check(t->hello.version == USW_WIRE_VERSION);
	return count;
}

static void rig_send_welcome(int connection, uint32_t status, int fd)
{
	struct usw_welcome welcome = {USW_WIRE_MAGIC, USW_WIRE_VERSION, status, 0};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct iovec vector = {.iov_base = &welcome, .iov_len = sizeof(welcome)};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof(control.bytes);
	}
	check(sendmsg(connection, &message, MSG_NOSIGNAL) == sizeof(welcome));
}

static int rig_accept(void)
{
	int connection;

	must(rig_readable(rig_listener, RIG_PATIENCE_MS));
	connection = accept4(rig_listener, NULL, NULL, SOCK_CLOEXEC);
	must(connection >= 0);
	return connection;
}

/** Who says on a connection that it is hands, by the kernel's word. */
static pid_t rig_sender(int connection)
{
	char word = 0;
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(struct ucred))];
	} control = {0};
	struct iovec vector = {.iov_base = &word, .iov_len = 1};
	struct msghdr message = {
		.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct ucred sender;

	check(recvmsg(connection, &message, MSG_DONTWAIT) == 1);
	check(word == USW_HANDS_HERE);
	must(control.header.cmsg_type == SCM_CREDENTIALS);
	memcpy(&sender, CMSG_DATA(&control.header), sizeof(sender));
	return sender.pid;
}

static struct target *target_create(void)
{
	struct target *t = calloc(1, sizeof(*t));

	must(t);
	t->connection = t->pidfd = t->uffd = -1;
	for (int i = 0; i < USW_FD_COUNT; i++)
		t->fds[i] = -1;
	pthread_mutex_init(&t->lock, NULL);
	t->stop_fd = eventfd(0, EFD_CLOEXEC);
	return t;
}

static void target_map_area(struct target *t)
{
	struct stat info;
	uint8_t *map;

	must(fstat(t->fds[USW_FD_AREA], &info) == 0);
	check(info.st_size == USW_AREA_MEMFD_BYTES);
	check(ftruncate(t->fds[USW_FD_AREA], 0) == -1);
	check(t->hello.area_start % USW_HUGE_BYTES == 0);
	map = mmap(NULL, USW_AREA_MEMFD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
		   t->fds[USW_FD_AREA], 0);
	must(map != MAP_FAILED);
	t->ring = (struct usw_ring *)map;
	t->standby = map + USW_RING_BYTES;
}

/** Answer the hello that has been received, and wait until hands is there. */
static void target_welcome(struct target *t)
{
	target_map_area(t);
	must(!setsockopt(t->connection, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
	rig_send_welcome(t->connection, USW_WELCOME_OK,
			 t->hello.kind == USW_HELLO_FORK ? t->uffd : -1);
	check(rig_wait_for(__atomic_load_n(&t->ring->hands_pid, __ATOMIC_ACQUIRE) != 0));
}

/** Take the next connection through an ordinary IMAGE handshake. */
static struct target *target_accept(void)
{
	struct target *t = target_create();

	t->connection = rig_accept();
	check(rig_receive_hello(t) == USW_FD_COUNT);
	check(t->hello.kind == USW_HELLO_IMAGE);
	t->uffd = t->fds[USW_FD_UFFD];
	target_welcome(t);
	return t;
}

/** The same for a child whose userfaultfd a fork event has brought. */
static void target_accept_fork(struct target *t)
{
	t->connection = rig_accept();
	check(rig_receive_hello(t) == USW_FD_UFFD);
	check(t->hello.kind == USW_HELLO_FORK);
	check(t->hello.token == t->token);
	target_welcome(t);
}

// --- serving faults -----------------------------------------------------------------------------

/** Caller holds t->lock. */
static struct stored_page *stored_find(struct target *t, uint64_t address)
{
	for (int i = 0; i < RIG_STORED_MAX; i++) {
		if (t->stored[i].address == address)
			return &t->stored[i];
	}
	return NULL;
}

/** Caller holds t->lock. */
static void stored_add(struct target *t, uint64_t address, const void *content)
{
	struct stored_page *page = stored_find(t, address);

	if (!page)
		page = stored_find(t, 0);
	must(page);
	if (!page->content)
		page->content = malloc(USW_PAGE_BYTES);
	must(page->content);
	page->address = address;
	memcpy(page->content, content, USW_PAGE_BYTES);
}

static int rig_copy(struct target *t, uint64_t address, const void *content)
{
	struct uffdio_copy copy = {
		.dst = address, .src = (uintptr_t)content, .len = USW_PAGE_BYTES};

	return ioctl(t->uffd, UFFDIO_COPY, &copy) ? errno : 0;
}

/** Returns 0, or the error of the ioctl: EAGAIN if an event has to be read first. */
static int serve_fault(struct target *t, uint64_t address)
{
	struct uffdio_zeropage zero = {.range = {address, USW_PAGE_BYTES}};
	uint64_t token[USW_PAGE_BYTES / 8] = {t->token};
	struct stored_page *page;
	int error;

	pthread_mutex_lock(&t->lock);
	page = stored_find(t, address);
	if (page)
		error = rig_copy(t, address, page->content);
	else if (t->token && address == t->hello.token_page)
		error = rig_copy(t, address, token);
	else
		error = ioctl(t->uffd, UFFDIO_ZEROPAGE, &zero) ? errno : 0;
	if (page && !error)
		page->address = 0;
	pthread_mutex_unlock(&t->lock);
	if (error == EEXIST)
		ioctl(t->uffd, UFFDIO_WAKE, &zero.range);
	return error;
}

static void target_serve(struct target *t);

static void serve_fork(struct target *parent, int uffd)
{
	static uint64_t next_token = 0x1000;
	struct target *child = target_create();

	child->uffd = uffd;
	child->token = __atomic_fetch_add(&next_token, 1, __ATOMIC_RELAXED);
	child->hello.token_page = parent->hello.token_page;
	pthread_mutex_lock(&parent->lock);
	for (int i = 0; i < RIG_STORED_MAX; i++) {
		if (parent->stored[i].address)
			stored_add(child, parent->stored[i].address, parent->stored[i].content);
	}
	pthread_mutex_unlock(&parent->lock);
	target_serve(child);
	parent->child = child;
}

/** Caller holds t->lock. */
static void stored_drop(struct target *t, uint64_t start, uint64_t end)
{
	for (int i = 0; i < RIG_STORED_MAX; i++) {
		if (t->stored[i].address >= start && t->stored[i].address < end)
			t->stored[i].address = 0;
	}
}

static void serve_event(struct target *t, const struct uffd_msg *message)
{
	switch (message->event) {
	case UFFD_EVENT_FORK:
		serve_fork(t, (int)message->arg.fork.ufd);
		break;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		pthread_mutex_lock(&t->lock);
		stored_drop(t, message->arg.remove.start, message->arg.remove.end);
		pthread_mutex_unlock(&t->lock);
		break;
	default:
		check(!"an event that no puppet causes");
	}
}

/** Enter the gate as the agent: flag, then wait for a MOVE under way. */
static void gate_enter(struct target *t)
{
	if (!t->ring)
		return;
	__atomic_store_n(&t->ring->gate_agent, 1, __ATOMIC_SEQ_CST);
	check(rig_wait_for(!__atomic_load_n(&t->ring->gate_hands, __ATOMIC_SEQ_CST)));
}

static void gate_leave(struct target *t)
{
	if (t->ring)
		__atomic_store_n(&t->ring->gate_agent, 0, __ATOMIC_SEQ_CST);
}

/** Read one message inside the gate; an event raises the epoch before the gate opens. */
static bool read_message(struct target *t, struct uffd_msg *message)
{
	bool got;

	gate_enter(t);
	got = read(t->uffd, message, sizeof(*message)) == sizeof(*message);
	if (got && message->event != UFFD_EVENT_PAGEFAULT && t->ring)
		__atomic_fetch_add(&t->ring->epoch, 1, __ATOMIC_SEQ_CST);
	gate_leave(t);
	return got;
}

static void *serve(void *argument)
{
	struct target *t = argument;
	uint64_t pending[RIG_PENDING_MAX];
	int pending_count = 0;
	struct uffd_msg message;

	while (!rig_readable(t->stop_fd, 0)) {
		int left = 0;

		if (t->deaf || (!rig_readable(t->uffd, 1) && !pending_count))
			continue;
		while (!t->deaf && pending_count < RIG_PENDING_MAX && read_message(t, &message)) {
			if (message.event == UFFD_EVENT_PAGEFAULT)
				pending[pending_count++] = message.arg.pagefault.address &
							   ~(uint64_t)4095;
			else
				serve_event(t, &message);
		}
		for (int i = 0; i < pending_count; i++) {
			if (serve_fault(t, pending[i]) == EAGAIN)
				pending[left++] = pending[i];
		}
		pending_count = left;
	}
	return NULL;
}

static void target_serve(struct target *t)
{
	must(pthread_create(&t->server, NULL, serve, t) == 0);
	t->has_server = true;
}

static void target_register(struct target *t, uint64_t start, uint64_t pages)
{
	struct uffdio_register registration = {
		.range = {start, pages * USW_PAGE_BYTES},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	must(ioctl(t->uffd, UFFDIO_REGISTER, &registration) == 0);
}

static void target_register_stages(struct target *t)
{
	target_register(t, t->hello.area_start + USW_AREA_STAGE_IN_OFFSET, USW_HUGE_PAGES);
	target_register(t, t->hello.area_start + USW_AREA_HUGE_IN_OFFSET, USW_HUGE_PAGES);
}

/** What the agent does before a target's first eviction. */
static void target_arm(struct target *t)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
			    UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
			    UFFD_FEATURE_MOVE,
	};

	must(ioctl(t->uffd, UFFDIO_API, &api) == 0);
	target_register_stages(t);
	target_register(t, t->hello.token_page, 1);
	target_serve(t);
}

/** Everything the fake agent holds of a target. Hands notices the end of the connection. */
static void target_destroy(struct target *t)
{
	uint64_t one = 1;

	if (t->has_server) {
		must(write(t->stop_fd, &one, sizeof(one)) == sizeof(one));
		pthread_join(t->server, NULL);
	}
	if (t->ring)
		munmap(t->ring, USW_AREA_MEMFD_BYTES);
	for (int i = 0; i < USW_FD_COUNT; i++) {
		if (t->fds[i] >= 0 && t->fds[i] != t->uffd)
			close(t->fds[i]);
	}
	if (t->uffd >= 0)
		close(t->uffd);
	if (t->connection >= 0)
		close(t->connection);
	close(t->stop_fd);
	for (int i = 0; i < RIG_STORED_MAX; i++)
		free(t->stored[i].content);
	free(t);
}

// --- commands -----------------------------------------------------------------------------------

static void ring_bell(struct target *t, char what)
{
	check(send(t->connection, &what, 1, MSG_NOSIGNAL) == 1);
}

static void ring_submit(struct target *t)
{
	__atomic_store_n(&t->ring->open_seq, t->seq + 1, __ATOMIC_RELAXED);
	__atomic_store_n(&t->ring->posted_seq, ++t->seq, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&t->ring->hands_sleeping, __ATOMIC_SEQ_CST))
		ring_bell(t, USW_BELL_WORK);
}

static void ring_post(struct target *t, uint32_t op, uint32_t epoch, const struct usw_run *runs,
		      uint32_t run_count)
{
	t->ring->op = op;
	t->ring->run_count = run_count;
	t->ring->page_count = 0;
	t->ring->command_epoch = epoch;
	for (uint32_t i = 0; i < run_count; i++) {
		t->ring->runs[i] = runs[i];
		t->ring->page_count += runs[i].page_count;
	}
	memset(t->ring->moved, 0xff, sizeof(t->ring->moved));
	ring_submit(t);
}

static bool ring_is_done(struct target *t)
{
	return __atomic_load_n(&t->ring->done_seq, __ATOMIC_SEQ_CST) == t->seq;
}

/** Wait asleep, so that the wake-up is tested; the wake-up is what ends it, not the timeout. */
static bool ring_wait(struct target *t)
{
	struct timespec patience = {.tv_sec = RIG_PATIENCE_MS / 1000};
	uint32_t seen;

	__atomic_store_n(&t->ring->agent_waiting, 1, __ATOMIC_SEQ_CST);
	while ((seen = __atomic_load_n(&t->ring->done_seq, __ATOMIC_SEQ_CST)) != t->seq) {
		if (syscall(SYS_futex, &t->ring->done_seq, FUTEX_WAIT, seen, &patience, NULL, 0) &&
		    errno == ETIMEDOUT)
			return false;
	}
	__atomic_store_n(&t->ring->agent_waiting, 0, __ATOMIC_SEQ_CST);
	return true;
}

static bool ring_moved(const struct target *t, uint32_t page)
{
	return t->ring->moved[page / 64] >> (page % 64) & 1;
}

static uint32_t ring_moved_count(const struct target *t)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < USW_BATCH_PAGES_MAX; i++)
		count += ring_moved(t, i);
	return count;
}

static uint32_t rig_epoch(const struct target *t)
{
	return __atomic_load_n(&t->ring->epoch, __ATOMIC_SEQ_CST);
}

/** Any command at a given epoch. Returns hands' error; pages moved by an EVICT become stored. */
static int rig_command(struct target *t, uint32_t op, uint32_t epoch, const struct usw_run *runs,
		       uint32_t run_count)
{
	bool evicts = op == USW_OP_EVICT || op == USW_OP_EVICT_HUGE;
	uint32_t page = 0;

	if (evicts)
		pthread_mutex_lock(&t->lock);
	ring_post(t, op, epoch, runs, run_count);
	must(ring_wait(t));
	for (uint32_t i = 0; evicts && i < run_count; i++) {
		for (uint32_t k = 0; k < runs[i].page_count; k++, page++) {
			if (ring_moved(t, page))
				stored_add(t, runs[i].address + (uint64_t)k * USW_PAGE_BYTES,
					   t->standby +
						   (uint64_t)(runs[i].slot + k) * USW_PAGE_BYTES);
		}
	}
	if (evicts)
		pthread_mutex_unlock(&t->lock);
	return t->ring->error;
}

static int rig_evict(struct target *t, uint64_t address, uint32_t pages, uint32_t slot)
{
	struct usw_run run = {address, pages, slot};

	return rig_command(t, USW_OP_EVICT, rig_epoch(t), &run, 1);
}

/** How many of these slots hold the pattern of consecutive pages. */
static uint32_t rig_slots_right(const struct target *t, uint32_t slot, uint32_t pages,
				uint64_t seed)
{
	uint32_t right = 0;

	for (uint32_t i = 0; i < pages; i++)
		right += pattern_matches(
			(uint64_t *)(t->standby + (uint64_t)(slot + i) * USW_PAGE_BYTES), seed, i);
	return right;
}

/** How many pages of a range the target's page table knows (bits 62 and 63: swapped, present). */
static uint32_t rig_present(const struct target *t, uint64_t address, uint32_t pages)
{
	uint32_t present = 0;

	for (uint32_t i = 0; i < pages; i++) {
		uint64_t entry = 0;

		must(pread(t->fds[USW_FD_PAGEMAP], &entry, 8, (address / USW_PAGE_BYTES + i) * 8) ==
		     8);
		present += entry >> 62 != 0;
	}
	return present;
}

/** Whether every stage is empty, as it must be between two commands. */
static bool rig_stages_empty(const struct target *t)
{
	return rig_present(t, t->hello.area_start + USW_AREA_STAGE_IN_OFFSET, 4 * USW_HUGE_PAGES) ==
	       0;
}

static pid_t rig_hands(const struct target *t)
{
	return (pid_t)t->ring->hands_pid;
}

/** End a target in the order of real life: the program ends, the bell is rung, hands is reaped. */
static void rig_end(struct puppet *p, struct target *t)
{
	pid_t hands = rig_hands(t);

	puppet_end(p);
	ring_bell(t, USW_BELL_QUIT);
	check(rig_reap(hands) == 0);
	target_destroy(t);
}

#endif /* USW_SHIM_RIG_H */
