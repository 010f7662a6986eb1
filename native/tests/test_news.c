// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: whatever else there is to tell, that targets have come and gone is not lost, in its order.
 * Method: more news than the queue holds, and nobody who reads it until it is full.
 */

#include <sys/eventfd.h>

#include "check.h"
#include "session.h"

#define MANY (4 * USW_EVENTS_MAX)

static struct usw_session session;

static void tell(enum usw_event_kind kind, uint32_t target_id)
{
	usw_session_report(&session, kind, target_id, 0, "it");
}

/** Ends are told as long as there is a place, and no longer: then they wait. */
static void test_ends_wait_for_a_place(void)
{
	struct usw_event event;
	uint32_t told = 0, heard = 0;

	for (uint32_t i = 0; i < MANY; i++)
		tell(USW_EVENT_WARNING, 0);
	while (usw_session_can_tell_end(&session) && told < MANY)
		tell(USW_EVENT_TARGET_GONE, ++told);
	CHECK_THAT(told, >, 0);
	CHECK_THAT(told, <, USW_EVENTS_MAX);
	while (usw_session_next_event(&session, &event)) {
		if (event.kind == USW_EVENT_TARGET_GONE)
			CHECK_EQ(event.target_id, ++heard);
	}
	CHECK_EQ(heard, told);
	CHECK(usw_session_can_tell_end(&session));
}

/** Who comes while an end waits is told of. */
static void test_beginnings_have_a_place(void)
{
	struct usw_event event;
	bool has_come = false;

	for (uint32_t i = 0; i < MANY; i++)
		tell(USW_EVENT_WARNING, 0);
	while (usw_session_can_tell_end(&session))
		tell(USW_EVENT_TARGET_GONE, 1);
	tell(USW_EVENT_TARGET_ADDED, 2);
	while (usw_session_next_event(&session, &event))
		has_come |= event.kind == USW_EVENT_TARGET_ADDED && event.target_id == 2;
	CHECK(has_come);
}

int main(void)
{
	check_start(30);
	session.events.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&session.events.lock, NULL);
	test_ends_wait_for_a_place();
	test_beginnings_have_a_place();
	return 0;
}
