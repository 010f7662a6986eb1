// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a session is out of memory if what cannot be squeezed out is over its budget, and not if
 * standby of many targets is, however late each look comes; and who waits knows what for.
 * Method: looks that come later than a shortage has to last, at targets whose queues have gone
 * through all of their slots each time.
 */

#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "account.h"
#include "check.h"
#include "session.h"
#include "shortage.h"

#define MIB ((uint64_t)1 << 20)
#define TARGETS 12u
#define LATE_US 400000

static struct usw_session session;

static void on_done(void *context)
{
	(void)context;
}

static void add_target(void)
{
	struct usw_target *target = usw_target_create(&session);
	int area_fd = memfd_create("area", MFD_CLOEXEC);

	CHECK(target && area_fd >= 0);
	CHECK_EQ(ftruncate(area_fd, USW_AREA_MEMFD_BYTES), 0);
	target->area_fd = area_fd;
	CHECK_EQ(usw_standby_init(&target->standby, &session.standbys, area_fd, USW_STANDBY_SLOTS),
		 0);
	target->next = session.targets;
	session.targets = target;
}

static void start(void)
{
	session.memory_limit_bytes = 32 * MIB;
	session.resident_limit_bytes = UINT64_MAX;
	session.config.on_full = USW_ON_FULL_KILL;
	session.events.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&session.events.lock, NULL);
	pthread_mutex_init(&session.targets_lock, NULL);
	CHECK_EQ(usw_segments_create(&session.segments, 64), 0);
	CHECK_EQ(usw_vswap_create(&session.vswap, &session.segments, 1024), 0);
	CHECK_EQ(usw_nodes_create(&session.nodes, 1024), 0);
	CHECK_EQ(usw_standby_space_create(&session.standbys), 0);
	usw_packer_init(&session.packer, &session.vswap, CHECK_SEED, on_done, NULL);
	for (uint32_t i = 0; i < TARGETS; i++)
		add_target();
}

/** A look at a session that holds so much of its own, and whose queues are full of slots once used. */
static bool is_out_of_memory(uint64_t own_bytes)
{
	session.own_bytes = own_bytes;
	for (struct usw_target *target = session.targets; target; target = target->next)
		target->standby.touched = USW_STANDBY_SLOTS;
	usw_account_freed(&session);
	CHECK_THAT(atomic_load(&session.ram_bytes), >, session.memory_limit_bytes + 8 * MIB);
	usw_shortage_look(&session, true);
	return atomic_load(&session.out_of_memory);
}

/** What is told of a session that waits for room, which it has not by now. */
static struct usw_event told_of_waiting(void)
{
	struct usw_event event = {0};

	session.reclaim.full_told = false;
	CHECK(!is_out_of_memory(64 * MIB));
	usleep(LATE_US);
	CHECK(!is_out_of_memory(64 * MIB));
	while (usw_session_next_event(&session, &event))
		;
	return event;
}

/** Who waits is told of a disk only if one would help. */
static void test_the_cause_of_a_wait_is_told(void)
{
	session.config.on_full = USW_ON_FULL_WAIT;
	atomic_store(&session.targets->state, USW_TARGET_LIVE);
	CHECK_EQ(told_of_waiting().kind, USW_EVENT_FULL);
	atomic_store(&session.targets->broken, true);
	struct usw_event event = told_of_waiting();
	CHECK_EQ(event.kind, USW_EVENT_WARNING);
	CHECK(strstr(event.text, "helper task is gone"));
	session.config.on_full = USW_ON_FULL_KILL;
	session.reclaim.stuck_since_ns = 0;
}

int main(void)
{
	check_start(60);
	start();
	for (int i = 0; i < 3; i++) {
		CHECK(!is_out_of_memory(4 * MIB));
		CHECK_THAT(atomic_load(&session.ram_bytes), <, session.memory_limit_bytes);
		usleep(LATE_US);
	}
	test_the_cause_of_a_wait_is_told();
	CHECK(!is_out_of_memory(64 * MIB)); // it has to last
	usleep(LATE_US);
	CHECK(is_out_of_memory(64 * MIB));
	return 0;
}
