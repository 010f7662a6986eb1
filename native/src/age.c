// SPDX-License-Identifier: MIT

/**
 * @file
 * A threshold that follows what it lets through. See age.h.
 */

#include "age.h"
#include "pagemap.h"

/* So many pages are looked at between two moves of the threshold. */
#define USW_AGE_LOOKED 64u
/* Of those, fewer taken lower it, and more raise it. */
#define USW_AGE_FEW (USW_AGE_LOOKED / 4)
#define USW_AGE_MANY (USW_AGE_LOOKED * 5 / 16)
/* A move is this part of the limit: a lap over few pages makes some, too. */
#define USW_AGE_STEPS 256u
/* Missed before so much of what is resident was replaced: one heat more, or two. */
#define USW_SOON_SHARE 4u
#define USW_AT_ONCE_SHARE 16u

void usw_age_note(struct usw_age *age, uint32_t resident, bool taken)
{
	uint32_t step = resident / USW_AGE_STEPS + 1;

	age->taken += taken;
	if (++age->looked < USW_AGE_LOOKED)
		return;
	if (age->taken < USW_AGE_FEW)
		age->threshold -= (uint32_t)usw_min(step, age->threshold);
	else if (age->taken > USW_AGE_MANY)
		age->threshold += step;
	// The limit may have fallen, and no page is ever older than the clock goes.
	age->threshold = (uint32_t)usw_min(age->threshold,
					   usw_min(2 * (uint64_t)resident, USW_STAMP_MASK / 2));
	age->looked = age->taken = 0;
}

void usw_age_end_batch(struct usw_age *age, uint32_t picked, uint32_t left)
{
	age->lap_gave |= left > 0;
	if (picked && !left)
		usw_age_forget(age);
}

void usw_age_end_lap(struct usw_age *age)
{
	if (!age->lap_gave)
		usw_age_forget(age);
	age->lap_gave = false;
}

void usw_age_forget(struct usw_age *age)
{
	age->threshold = age->looked = age->taken = 0;
}

uint32_t usw_age_heat(uint64_t word, uint32_t now, uint32_t resident)
{
	uint32_t distance = usw_page_age(word, now);
	uint32_t heat = usw_page_heat(word);

	if (distance < resident / USW_SOON_SHARE)
		heat += distance < resident / USW_AT_ONCE_SHARE ? 2 : 1;
	else if (distance > resident && heat)
		heat--;
	return (uint32_t)usw_min(heat, USW_HEAT_MAX);
}
