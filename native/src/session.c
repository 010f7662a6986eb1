// SPDX-License-Identifier: MIT

/**
 * @file
 * The session: creation, the C API of the control plane, handshakes, news. See session.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "demote.h"
#include "eligible.h"
#include "fault.h"
#include "guard.h"
#include "ring.h"
#include "session.h"
#include "uffd.h"

/*
 * Address space reserved, not memory: 2^32 IDs would be 64 GiB of descriptors for 16 TiB of pages.
 */
#define USW_VSWAP_CAPACITY (1u << 28)    /* IDs: 1 TiB of evicted pages */
#define USW_NODES_CAPACITY (1u << 22)    /* page-map nodes: 2 M leaves of 2 MiB each, 4 TiB */
#define USW_SEGMENTS_CAPACITY (1u << 18) /* segments: 256 GiB stored */

// --- News for the control plane -----------------------------------------------------------------

/* Places of the queue that are only for the coming and going of targets, and half of them for one. */
#define USW_EVENTS_KEPT 32u

/** Caller holds the queue's lock. */
static uint32_t free_places(const struct usw_event_queue *queue)
{
	return USW_EVENTS_MAX - (queue->head - queue->tail);
}

bool usw_session_can_tell_end(struct usw_session *session)
{
	struct usw_event_queue *queue = &session->events;

	pthread_mutex_lock(&queue->lock);
	bool can = free_places(queue) > USW_EVENTS_KEPT / 2;
	pthread_mutex_unlock(&queue->lock);
	return can;
}

void usw_session_report(struct usw_session *session, enum usw_event_kind kind, uint32_t target_id,
			int pid, const char *format, ...)
{
	struct usw_event_queue *queue = &session->events;
	struct usw_event event = {.kind = kind, .target_id = target_id, .pid = pid};
	bool is_kept = kind == USW_EVENT_TARGET_ADDED || kind == USW_EVENT_TARGET_GONE;
	uint64_t one = 1;
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(event.text, sizeof(event.text), format, arguments);
	va_end(arguments);
	pthread_mutex_lock(&queue->lock);
	if (free_places(queue) > (is_kept ? 0 : USW_EVENTS_KEPT))
		queue->at[queue->head++ % USW_EVENTS_MAX] = event;
	pthread_mutex_unlock(&queue->lock);
	if (write(queue->fd, &one, sizeof(one)) < 0)
		return; // EAGAIN: it is readable anyway
}

int usw_session_event_fd(struct usw_session *session)
{
	return session->events.fd;
}

int usw_session_next_event(struct usw_session *session, struct usw_event *ret)
{
	struct usw_event_queue *queue = &session->events;
	uint64_t count;
	int found = 0;

	pthread_mutex_lock(&queue->lock);
	if (queue->head != queue->tail) {
		*ret = queue->at[queue->tail++ % USW_EVENTS_MAX];
		found = 1;
	} else if (read(queue->fd, &count, sizeof(count)) < 0) {
		found = 0; // EAGAIN: nothing was announced
	}
	pthread_mutex_unlock(&queue->lock);
	return found;
}

// --- Creation -----------------------------------------------------------------------------------

static int fail(struct usw_error *error, int code, const char *what)
{
	error->code = -code;
	snprintf(error->text, sizeof(error->text), "%s: %s", what, strerror(-code));
	return code;
}

static void on_damaged(void *context, uint32_t id)
{
	usw_vswap_note_damaged(&((struct usw_session *)context)->vswap, id);
}

static void on_moved(void *context)
{
	usw_reclaim_kick(context);
}

static void on_tier_report(void *context, enum usw_event_kind kind, uint32_t id, const char *text)
{
	usw_session_report(context, kind, id, 0, "%s", text);
}

static int create_spaces(struct usw_session *session)
{
	const struct usw_tiers_hooks hooks = {.moved = on_moved,
					      .damaged = on_damaged,
					      .report = on_tier_report,
					      .context = session};
	int ret = usw_segments_create(&session->segments, USW_SEGMENTS_CAPACITY);

	if (!ret)
		ret = usw_vswap_create(&session->vswap, &session->segments, USW_VSWAP_CAPACITY);
	if (!ret)
		ret = usw_nodes_create(&session->nodes, USW_NODES_CAPACITY);
	if (!ret)
		ret = usw_standby_space_create(&session->standbys);
	if (!ret)
		ret = usw_equal_create(&session->equal, &session->vswap, &session->standbys);
	usw_ahead_init(&session->ahead, &session->standbys, usw_ahead_default_threads());
	if (!ret)
		usw_packer_init(&session->packer, &session->vswap, session->hash_seed, on_moved,
				session);
	if (!ret)
		ret = usw_tiers_init(&session->tiers, &session->segments,
				     !session->config.disk_plain, &hooks);
	return ret;
}

static uint32_t choose_thread_count(const struct usw_config *config)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t wanted = config->fault_threads ? config->fault_threads
						: (uint32_t)(cpus > 3 ? cpus / 4 : 1);

	return (uint32_t)usw_max(1, usw_min(wanted, USW_FAULT_THREADS_MAX));
}

static int start_threads(struct usw_session *session)
{
	session->thread_count = choose_thread_count(&session->config);
	for (uint32_t i = 0; i < session->thread_count; i++) {
		struct usw_fault_thread *thread = &session->threads[i];
		int ret = usw_fault_thread_init(thread, session);

		if (ret)
			return ret;
		ret = -pthread_create(&thread->thread, NULL, usw_fault_main, thread);
		if (ret)
			return ret;
		thread->started = true;
		pthread_setname_np(thread->thread, "uffdswap-fault");
	}
	int ret = -pthread_create(&session->reclaim.thread, NULL, usw_reclaim_main, session);
	if (ret)
		return ret;
	session->reclaim.started = true;
	pthread_setname_np(session->reclaim.thread, "uffdswap-reclai");
	return usw_watch_start(session);
}

int usw_session_create(const struct usw_config *config, struct usw_session **ret,
		       struct usw_error *error)
{
	struct usw_session *session = aligned_alloc(64, (sizeof(*session) + 63) & ~(size_t)63);
	if (!session)
		return fail(error, -ENOMEM, "cannot create the session");

	memset(session, 0, sizeof(*session));
	session->config = *config;
	session->next_target_id = 1;
	session->memory_limit_bytes = config->memory_limit_bytes;
	session->resident_limit_bytes = config->resident_limit_bytes;
	uint64_t limit_bytes = usw_min(config->resident_limit_bytes, config->memory_limit_bytes);
	session->limit_pages = limit_bytes == UINT64_MAX ? INT64_MAX / 2
							 : (int64_t)(limit_bytes / USW_PAGE_BYTES);
	session->keep_copies = session->copies_pay = true;
	usw_balance_init(&session->balance, usw_now_ns());
	session->has_guards = usw_guards_exist();
	pthread_mutex_init(&session->targets_lock, NULL);
	pthread_mutex_init(&session->events.lock, NULL);
	session->events.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	for (uint32_t i = 0; i < USW_FAULT_THREADS_MAX; i++)
		session->threads[i].epoll_fd = session->threads[i].kick_fd = -1;

	int code = session->events.fd < 0 ? -errno : 0;
	if (!code && getrandom(&session->hash_seed, sizeof(session->hash_seed), 0) < 0)
		code = -errno;
	if (!code)
		code = create_spaces(session);
	if (!code)
		code = start_threads(session);
	if (code) {
		usw_session_destroy(session);
		return fail(error, code, "cannot create the session's memory or threads");
	}
	*ret = session;
	return 0;
}

static void stop_threads(struct usw_session *session)
{
	atomic_store(&session->stopping, true);
	for (uint32_t i = 0; i < USW_FAULT_THREADS_MAX; i++) {
		struct usw_fault_thread *thread = &session->threads[i];

		if (!thread->started)
			continue;
		usw_fault_kick_one(thread);
		pthread_join(thread->thread, NULL);
	}
	usw_reclaim_kick(session);
	if (session->reclaim.started)
		pthread_join(session->reclaim.thread, NULL);
	usw_watch_stop(session);
	// Last: until all have ended they may give each other children to serve, and kick each other.
	for (uint32_t i = 0; i < USW_FAULT_THREADS_MAX; i++)
		usw_fault_thread_deinit(&session->threads[i]);
}

void usw_session_destroy(struct usw_session *session)
{
	if (!session)
		return;
	stop_threads(session);
	while (session->targets) {
		struct usw_target *target = session->targets;

		session->targets = target->next;
		usw_target_poison_all(target);
		usw_ring_quit(target);
		usw_target_destroy(target);
	}
	usw_ahead_deinit(&session->ahead);
	usw_packer_deinit(&session->packer);
	usw_tiers_deinit(&session->tiers);
	free(session->parking.shares); // a park may have been going on
	usw_equal_destroy(&session->equal);
	usw_standby_space_destroy(&session->standbys);
	usw_nodes_destroy(&session->nodes);
	usw_vswap_destroy(&session->vswap);
	usw_segments_destroy(&session->segments);
	usw_cleanup_close(&session->events.fd);
	pthread_mutex_destroy(&session->events.lock);
	pthread_mutex_destroy(&session->targets_lock);
	free(session);
}

int usw_session_fds(struct usw_session *session, int *fds, int capacity)
{
	const int all[] = {
		session->segments.data.fd,    session->segments.tables.fd,
		session->segments.headers.fd, session->vswap.space.fd,
		session->nodes.space.fd,
	};
	int count = (int)(sizeof(all) / sizeof(all[0]));

	if (count > capacity)
		count = capacity;
	memcpy(fds, all, (size_t)count * sizeof(int));
	return count;
}

void usw_session_set_limits(struct usw_session *session, uint64_t memory_limit_bytes,
			    uint64_t resident_limit_bytes)
{
	atomic_store(&session->room_made, true); // first: whoever sees the limits sees this
	atomic_store(&session->memory_limit_bytes, memory_limit_bytes);
	atomic_store(&session->resident_limit_bytes, resident_limit_bytes);
	usw_reclaim_kick(session);
	usw_watch_kick(session);
}

// --- Tiers --------------------------------------------------------------------------------------

int usw_session_tier_add(struct usw_session *session, const char *path, const char *name,
			 uint64_t cap_bytes, int priority, struct usw_error *error)
{
	int ret = usw_tiers_add(&session->tiers, path, name, cap_bytes, priority, error);

	if (ret > 0)
		atomic_store(&session->room_made, true);
	usw_reclaim_kick(session);
	return ret;
}

int usw_session_tier_remove(struct usw_session *session, const char *name, struct usw_error *error)
{
	return usw_tiers_remove(&session->tiers, name, usw_demote_ram_free_bytes(session), error);
}

int usw_session_tier_list(struct usw_session *session, struct usw_tier_info *ret, int capacity)
{
	struct usw_statistics now;
	uint64_t memory = atomic_load(&session->memory_limit_bytes);
	int count = 0;

	usw_session_statistics(session, &now);
	uint64_t held = now.ram_bytes + now.resident_bytes;
	if (capacity > 0)
		ret[count++] = (struct usw_tier_info){
			.name = "ram",
			.kind = USW_TIER_KIND_RAM,
			.cap_bytes = memory,
			.free_bytes = memory == UINT64_MAX ? UINT64_MAX
				      : memory > held      ? memory - held
							   : 0,
			.segments = now.ram_segments,
			.pages = now.ram_pages,
			.original_bytes = now.ram_original_bytes,
			.stored_bytes = now.ram_stored_bytes,
		};
	for (uint32_t i = 1; i < USW_TIERS_MAX && count < capacity; i++)
		count += usw_tiers_describe(&session->tiers, i, &ret[count]);
	return count;
}

// --- Targets ------------------------------------------------------------------------------------

int usw_session_adopt(struct usw_session *session, struct usw_target *target, uint32_t *ret_id)
{
	pthread_mutex_lock(&session->targets_lock);
	*ret_id = target->id = session->next_target_id++;
	atomic_store(&target->state, USW_TARGET_LIVE);
	target->next = session->targets;
	session->targets = target;
	struct usw_fault_thread *thread =
		&session->threads[session->next_thread++ % session->thread_count];
	int ret = usw_fault_serve(thread, target);
	pthread_mutex_unlock(&session->targets_lock);
	atomic_fetch_add(&session->targets_total, 1);
	atomic_fetch_add(&session->targets_now, 1);
	usw_watch_kick(session); // it has no alarm for this one
	return ret;
}

struct usw_target *usw_session_walk(struct usw_session *session, struct usw_target *previous)
{
	pthread_mutex_lock(&session->targets_lock);
	struct usw_target *next = previous ? previous->next : session->targets;

	if (next)
		atomic_fetch_add(&next->pins, 1);
	if (previous)
		atomic_fetch_sub(&previous->pins, 1);
	pthread_mutex_unlock(&session->targets_lock);
	return next;
}

void usw_session_kill_all(struct usw_session *session, const char *why)
{
	pthread_mutex_lock(&session->targets_lock);
	for (struct usw_target *target = session->targets; target; target = target->next)
		usw_target_kill(target, why);
	pthread_mutex_unlock(&session->targets_lock);
}

int usw_target_fds(struct usw_session *session, uint32_t target_id, int *fds, int capacity)
{
	int count = 0;

	pthread_mutex_lock(&session->targets_lock);
	for (struct usw_target *target = session->targets; target; target = target->next) {
		const int all[] = {target->uffd,      target->pidfd,      target->area_fd,
				   target->maps_fd,   target->pagemap_fd, target->smaps_fd,
				   target->connection};

		if (target->id != target_id)
			continue;
		for (size_t i = 0; i < sizeof(all) / sizeof(all[0]) && count < capacity; i++) {
			int copy = all[i] >= 0 ? fcntl(all[i], F_DUPFD_CLOEXEC, 0) : -1;

			if (copy >= 0)
				fds[count++] = copy;
		}
		break;
	}
	pthread_mutex_unlock(&session->targets_lock);
	return count;
}

// --- Handshake ----------------------------------------------------------------------------------

static int send_welcome(int connection, enum usw_welcome_status status, int fd)
{
	struct usw_welcome welcome = {
		.magic = USW_WIRE_MAGIC, .version = USW_WIRE_VERSION, .status = status};
	struct iovec data = {.iov_base = &welcome, .iov_len = sizeof(welcome)};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	if (fd >= 0) {
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
		message.msg_control = control.space;
		message.msg_controllen = sizeof(control.space);
	}
	return sendmsg(connection, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int say(struct usw_error *error, int code, const char *text)
{
	error->code = -code;
	snprintf(error->text, sizeof(error->text), "%s", text);
	return code;
}

static int check_hello(const struct usw_hello *hello, size_t hello_bytes, int fd_count,
		       struct usw_error *error)
{
	static const int fds_of[] = {[USW_HELLO_IMAGE] = USW_FD_COUNT,
				     [USW_HELLO_FORK] = USW_FD_UFFD,
				     [USW_HELLO_DEVICE] = 0};

	if (hello_bytes < 2 * sizeof(uint32_t) || hello->magic != USW_WIRE_MAGIC)
		return say(error, -EPROTO, "a connection sent something that is no hello");
	if (hello->version != USW_WIRE_VERSION)
		return say(
			error, -EPROTONOSUPPORT,
			"the program's shim speaks another version of the protocol; is it from another "
			"installation of uffdswap?");
	if (hello_bytes != sizeof(*hello) || hello->kind < USW_HELLO_IMAGE ||
	    hello->kind > USW_HELLO_DEVICE || fd_count != fds_of[hello->kind])
		return say(error, -EPROTO, "a connection sent a malformed hello");
	return 0;
}

/** The shim may not open a userfaultfd itself; we may, perhaps. */
static int answer_device(int connection, struct usw_error *error)
{
	_cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (device < 0)
		return say(error, -EPERM,
			   "neither the program nor the agent may open a full-mode userfaultfd; "
			   "`uffdswap doctor` says what would help");
	return send_welcome(connection, USW_WELCOME_DEVICE, device) ? -EPIPE : 1;
}

/** The old image of a process that called exec is no target any more. */
static void retire_old_image(struct usw_session *session, int pid)
{
	pthread_mutex_lock(&session->targets_lock);
	for (struct usw_target *target = session->targets; target; target = target->next)
		if (target->pid == pid)
			usw_target_ask_retire(target);
	pthread_mutex_unlock(&session->targets_lock);
}

/**
 * While the program waits for its welcome and does nothing else, do what would have to wait for
 * its mmap lock later: register the stages and see where it may grow.
 */
static void prepare_target(struct usw_target *target)
{
	if (usw_target_register_stages(target))
		atomic_store(&target->broken, true);
	usw_eligible_look(target);
}

/** A new image, or a fork of a target that had nothing registered. */
static int add_image(struct usw_session *session, const struct usw_hello *hello, const int *fds,
		     int connection, int pidfd, int pid, struct usw_error *error)
{
	int ret = usw_uffd_api(fds[USW_FD_UFFD], USW_UFFD_FEATURES);

	if (ret)
		return say(
			error, ret == -EPERM ? -EPERM : ret,
			ret == -EPERM
				? "fork events of userfaultfd need CAP_SYS_PTRACE in the agent; "
				  "`uffdswap doctor` says what would help"
				: "this kernel's userfaultfd lacks a needed feature; see `uffdswap doctor`");

	struct usw_target *target = usw_target_create(session);
	if (!target)
		return say(error, -ENOMEM, "out of memory for another target");
	ret = usw_target_attach(target, hello, fds, pidfd, pid, connection, error);
	if (ret) {
		usw_target_destroy(target);
		return ret;
	}
	target->uffd = fds[USW_FD_UFFD];
	prepare_target(target);
	retire_old_image(session, pid);
	// Adopted first: were this thread to lose its processor after the welcome, the program
	// would grow past the limit before anybody looks. The lock keeps doorbells behind the
	// welcome, the pin keeps a target that goes at once. A peer that is gone is noticed through
	// its pidfd.
	uint32_t id;
	atomic_fetch_add(&target->pins, 1);
	pthread_mutex_lock(&target->map_lock);
	if (usw_session_adopt(session, target, &id))
		usw_session_kill_all(session, "cannot serve another target: out of kernel memory");
	send_welcome(connection, USW_WELCOME_OK, -1);
	pthread_mutex_unlock(&target->map_lock);
	atomic_fetch_sub(&target->pins, 1);
	usw_session_report(session, USW_EVENT_TARGET_ADDED, id, pid, "image");
	usw_reclaim_kick(session);
	return 0;
}

/** The child that was told this token, pinned; NULL if there is none without hands. */
static struct usw_target *find_token(struct usw_session *session, uint64_t token)
{
	struct usw_target *target;

	pthread_mutex_lock(&session->targets_lock);
	for (target = session->targets; target; target = target->next)
		if (target->token == token && !atomic_load(&target->has_hands))
			break;
	if (target)
		atomic_fetch_add(&target->pins, 1);
	pthread_mutex_unlock(&session->targets_lock);
	return target;
}

/** A forked child that is served already brings its hands and the files about itself. */
static int add_fork(struct usw_session *session, const struct usw_hello *hello, const int *fds,
		    int connection, int pidfd, int pid, struct usw_error *error)
{
	struct usw_target *target = find_token(session, hello->token);
	int ret = say(error, -ENOENT, "a forked child that is not known");

	if (!target)
		return ret;
	pthread_mutex_lock(&target->map_lock);
	if (atomic_load(&target->state) == USW_TARGET_LIVE && !atomic_load(&target->has_hands)) {
		ret = usw_target_attach(target, hello, fds, pidfd, pid, connection, error);
		if (!ret) {
			usw_target_check_inherited(target);
			prepare_target(target);
		}
		if (!ret && (usw_fault_watch_exit(target) ||
			     send_welcome(connection, USW_WELCOME_OK, target->uffd)))
			atomic_store(&target->broken, true);
	}
	pthread_mutex_unlock(&target->map_lock);
	if (!ret)
		usw_session_report(session, USW_EVENT_TARGET_ADDED, target->id, pid, "fork");
	atomic_fetch_sub(&target->pins, 1);
	return ret;
}

static void close_all(int connection, int pidfd, const int *fds, int fd_count)
{
	close(connection);
	if (pidfd >= 0)
		close(pidfd);
	for (int i = 0; i < fd_count; i++)
		close(fds[i]);
}

int usw_target_add(struct usw_session *session, int connection, int pidfd, int pid,
		   const void *hello_bytes, size_t hello_length, const int *fds, int fd_count,
		   struct usw_error *error)
{
	struct usw_hello hello = {0};

	memcpy(&hello, hello_bytes, usw_min(hello_length, sizeof(hello)));
	int ret = check_hello(&hello, hello_length, fd_count, error);
	if (!ret && pidfd < 0)
		ret = say(error, -ESRCH, "the process is gone");
	if (!ret) {
		switch ((enum usw_hello_kind)hello.kind) {
		case USW_HELLO_IMAGE:
			ret = add_image(session, &hello, fds, connection, pidfd, pid, error);
			break;
		case USW_HELLO_FORK:
			ret = add_fork(session, &hello, fds, connection, pidfd, pid, error);
			break;
		case USW_HELLO_DEVICE:
			ret = answer_device(connection, error);
			break;
		case USW_HELLO_JOIN:    // a question for a standing agent,
		case USW_HELLO_GIVE_UP: // and nothing to add: check_hello() refused both
			break;
		}
	}
	if (ret < 0) {
		send_welcome(connection, USW_WELCOME_REFUSED, -1);
		close_all(connection, pidfd, fds, fd_count);
	}
	return ret;
}

// --- Statistics ---------------------------------------------------------------------------------

static void sum_counters(struct usw_session *session, struct usw_counters *sum,
			 struct usw_histogram *latency)
{
	usw_counters_add(sum, &session->reclaim.counters);
	for (uint32_t i = 0; i < session->thread_count; i++) {
		usw_counters_add(sum, &session->threads[i].counters);
		usw_histogram_add(latency, &session->threads[i].latency);
	}
}

static uint64_t count_without_hands(struct usw_session *session)
{
	uint64_t count = 0;

	pthread_mutex_lock(&session->targets_lock);
	for (struct usw_target *target = session->targets; target; target = target->next)
		count += !atomic_load(&target->has_hands);
	pthread_mutex_unlock(&session->targets_lock);
	return count;
}

void usw_session_statistics(struct usw_session *session, struct usw_statistics *ret)
{
	struct usw_counters sum = {0};
	static struct usw_histogram latency; // control thread only; 4 KB

	memset(&latency, 0, sizeof(latency));
	sum_counters(session, &sum, &latency);
	int64_t resident_pages = usw_session_resident(session);
	uint64_t live_objects = session->segments.live_count;
	uint64_t disk_objects = 0, disk_bytes = 0, disk_segments = 0;

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		disk_objects += session->tiers.at[i].pages;
		disk_bytes += session->tiers.at[i].stored_bytes;
		disk_segments += session->tiers.at[i].segments;
	}
	// They were counted a moment ago, and pages die all the time.
	disk_objects = usw_min(disk_objects, live_objects);
	live_objects -= disk_objects;

	*ret = (struct usw_statistics){
		.targets_total = session->targets_total,
		.targets_now = session->targets_now,
		.targets_without_hands = count_without_hands(session),
		.resident_bytes = resident_pages > 0 ? (uint64_t)resident_pages * USW_PAGE_BYTES
						     : 0,
		.resident_peak_bytes = session->resident_peak_bytes,
		.ram_bytes = session->ram_bytes,
		.ram_peak_bytes = session->ram_peak_bytes,
		.standby_pages = session->standby_pages,
		.metadata_bytes = session->metadata_bytes,
		.descriptors = session->vswap.live_count,
		.latency_p50_ns = usw_histogram_quantile_ns(&latency, 0.5),
		.latency_p90_ns = usw_histogram_quantile_ns(&latency, 0.9),
		.latency_p99_ns = usw_histogram_quantile_ns(&latency, 0.99),
		.latency_p999_ns = usw_histogram_quantile_ns(&latency, 0.999),
		.latency_max_ns = latency.max_ns,
		.ram_pages = live_objects,
		.ram_original_bytes = live_objects * USW_PAGE_BYTES,
		.ram_stored_bytes = session->ram_stored_bytes,
		.ram_segments = session->ram_segments,
		.compacted_segments = session->compacted_segments,
		.packed_pages = session->packer.packed_pages,
		.out_of_memory = session->out_of_memory,
		.disk_pages = disk_objects,
		.disk_original_bytes = disk_objects * USW_PAGE_BYTES,
		.disk_stored_bytes = disk_bytes,
		.disk_segments = disk_segments,
		.disk_peak_bytes = session->tiers.peak_bytes,
		.demoted_segments = session->tiers.demoted_segments,
		.promoted_segments = session->tiers.promoted_segments,
		.disk_is_encrypted = session->tiers.is_ready && session->tiers.is_sealed,
		.disk_uses_uring = session->tiers.is_ready &&
				   session->tiers.aio_engine == USW_AIO_URING,
		.waits_for_room = session->waits_for_room,
		.faults_total = sum.faults_total,
		.faults_hole = sum.faults_hole,
		.faults_standby = sum.faults_standby,
		.faults_zero = sum.faults_zero,
		.faults_same = sum.faults_same,
		.faults_ram = sum.faults_ram,
		.faults_disk = sum.faults_disk,
		.faults_present = sum.faults_present,
		.faults_deferred = sum.faults_deferred,
		.prefetched_pages = sum.prefetched_pages,
		.prefetch_proven = sum.prefetch_proven,
		.evicted_pages = sum.evicted_pages,
		.evicted_unshared = sum.evicted_unshared,
		.evicted_clean = sum.evicted_clean,
		.evicted_zero = sum.evicted_zero,
		.evicted_same = sum.evicted_same,
		.evicted_equal = sum.evicted_equal,
		.evicted_ahead = sum.evicted_ahead,
		.evicted_packed = sum.evicted_packed,
		.evicted_compressed = sum.evicted_compressed,
		.evicted_incompressible = sum.evicted_incompressible,
		.evict_refused = sum.evict_refused,
		.verified_pages = sum.verified_pages,
		.poisoned_pages = sum.poisoned_pages,
		.vanished_pages = sum.vanished_pages,
	};
}
