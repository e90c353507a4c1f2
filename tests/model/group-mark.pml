/* SPDX-License-Identifier: Apache-2.0 */
/*
 * group-mark.pml - a mark that cuts the streams of several hosts at one moment: a model for spin.
 *
 * Property (K10, V2): if a mark is declared, then no write that stands before it depends on one
 * that stands behind it. W2 on host b depends on W1 on host a when it was issued by somebody who
 * knew that W1 had completed.
 *
 * Protocol. A coordinator has marks of its own, each tried once. MARK goes to every host, with
 * the incarnation that it knows of that host. A host places the mark in its ring and from then on
 * withholds the completions of writes that are captured later; it answers PLACED. When all have,
 * RELEASE goes to every host; a host releases, and answers HELD only if its hold has lasted until
 * then. When all have, the mark is declared. A hold that the kernel's timer ends, or the death of
 * the consumer, is broken and is never HELD. A host holds for one mark at a time.
 *
 * What is modelled
 *   The network: what was sent once may arrive never, once, late, or often, in any order.
 *   Hosts: any timer expires at any moment of a hold; asrd dies and comes back at any moment
 *   (another incarnation, no hold, no memory).
 *   Coordinators: one per mark, at work at the same time; each may stop for good at any moment
 *   (it takes no more steps), or give up. Which member it is, and how it was elected, does not
 *   matter to the property.
 *   The workload: one chain of writes on any hosts, each issued after the one before completed.
 *   More chains add nothing: a violation is one chain.
 *
 * BREAK names a protocol that is wrong, to show that the property can fail:
 *   1 completions are not withheld     2 PLACED by all is enough, HELD is not asked for
 *   3 a host answers for what it was before it died     4 RELEASE before all have PLACED
 *   5 a host takes a second mark while it holds, and the first hold with it
 *   9 none of it; but a declaration counts as an error: it can be reached
 */
#ifndef HOSTS
#define HOSTS 3
#endif
#ifndef MARKS
#define MARKS 2
#endif
#ifndef BREAK
#define BREAK 0
#endif
#define NONE 255
#define AT(m, h) ((m) * HOSTS + (h))

/* messages that were sent, and what they carry */
bool sent_mark[MARKS * HOSTS], sent_placed[MARKS * HOSTS], sent_release[MARKS * HOSTS], sent_held[MARKS * HOSTS];
bit addressed[MARKS * HOSTS];	/* the incarnation that MARK and RELEASE are meant for */

/* hosts */
bit incarnation[HOSTS];
bool placed[MARKS * HOSTS];	/* the mark is in the stream */
byte hold[HOSTS] = NONE;	/* the mark that it holds for */

/* the workload, as an onlooker knows it */
bool knows[MARKS];		/* the chain rests on a write behind this mark on some host */
bool torn[MARKS];		/* ... and one of its writes stands before it on another */
bool declared[MARKS];

inline meant_for(m, h, yes) {
	yes = (BREAK == 3 || addressed[AT(m, h)] == incarnation[h])
}

proctype host(byte h) {
	byte m;
	bool yes;

	do
	:: atomic {		/* MARK arrives */
		select(m : 0 .. MARKS - 1);
		meant_for(m, h, yes);
		if
		:: sent_mark[AT(m, h)] && yes && !placed[AT(m, h)] && (hold[h] == NONE || BREAK == 5) ->
			placed[AT(m, h)] = true;
			hold[h] = m;
			sent_placed[AT(m, h)] = true
		:: else
		fi;
		m = 0; yes = false
	   }
	:: atomic {		/* RELEASE arrives */
		select(m : 0 .. MARKS - 1);
		meant_for(m, h, yes);
		if
		:: sent_release[AT(m, h)] && yes && hold[h] == m ->
			hold[h] = NONE;
			sent_held[AT(m, h)] = true
		:: sent_release[AT(m, h)] && yes && placed[AT(m, h)] && (BREAK == 3 || (BREAK == 5 && hold[h] != NONE)) ->
			sent_held[AT(m, h)] = true
		:: else
		fi;
		m = 0; yes = false
	   }
	:: hold[h] != NONE -> hold[h] = NONE	/* the timer */
	:: atomic {		/* asrd dies, and is back */
		incarnation[h] == 0 ->
		incarnation[h] = 1;
		hold[h] = NONE
	   }
	od
}

proctype coordinator(byte m) {
	byte h;

	atomic {
		h = 0;
		do
		:: h < HOSTS ->
			addressed[AT(m, h)] = incarnation[h];
			sent_mark[AT(m, h)] = true;
			h++
		:: else -> break
		od;
		h = 0
	}
placing:
	atomic {
		h = 0;
		do
		:: h < HOSTS && (sent_placed[AT(m, h)] || (BREAK == 4 && h > 0)) -> h++
		:: else -> break
		od;
		if
		:: h == HOSTS -> h = 0
		:: h < HOSTS -> h = 0; goto placing
		:: h < HOSTS -> h = 0; goto giving_up
		fi
	}
	atomic {
		h = 0;
		do
		:: h < HOSTS -> sent_release[AT(m, h)] = true; h++
		:: else -> break
		od;
		h = 0
	}
releasing:
	atomic {
		h = 0;
		do
		:: h < HOSTS && (sent_held[AT(m, h)] || (BREAK == 4 && sent_placed[AT(m, h)]) || BREAK == 2) -> h++
		:: else -> break
		od;
		if
		:: h == HOSTS -> h = 0; goto declaring
		:: h < HOSTS -> h = 0; goto releasing
		fi
	}
declaring:
	atomic {
		declared[m] = true;
		assert(BREAK != 9);
		assert(!torn[m]);
		goto done
	}
giving_up:
	atomic {		/* nobody is to hold for longer than needed */
		h = 0;
		do
		:: h < HOSTS -> sent_release[AT(m, h)] = true; h++
		:: else -> break
		od;
		h = 0
	}
done:
	skip
}

proctype workload() {
	byte h, m, withheld;
	bool behind[MARKS];

	do
	:: atomic {		/* a write is captured on h */
		select(h : 0 .. HOSTS - 1);
		m = 0;
		do
		:: m < MARKS ->
			behind[m] = knows[m] || placed[AT(m, h)];
			if
			:: knows[m] && !placed[AT(m, h)] -> torn[m] = true
			:: else
			fi;
			assert(!declared[m] || !torn[m]);
			m++
		:: else -> break
		od;
		withheld = hold[h];
		m = 0
	   }
	   atomic {		/* it completes, and the next one may depend on it */
		(withheld == NONE || hold[h] != withheld || BREAK == 1) ->
		m = 0;
		do
		:: m < MARKS -> knows[m] = behind[m]; behind[m] = false; m++
		:: else -> break
		od;
		withheld = NONE; h = 0; m = 0
	   }
	od
}

init {
	byte i;

	atomic {
		i = 0;
		do
		:: i < HOSTS -> run host(i); i++
		:: else -> break
		od;
		i = 0;
		do
		:: i < MARKS -> run coordinator(i); i++
		:: else -> break
		od;
		run workload()
	}
}
