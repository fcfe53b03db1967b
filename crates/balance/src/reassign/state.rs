//! An assignment with all that is needed to tell in well under a microsecond what a change would
//! cost: flat arrays by machine and resource, and counts by service.

use super::problem::{MachineId, Problem, ProcessId};

/// Services of more processes than this have a row of bits, one for each machine; those of others
/// are looked at one by one. It bounds the rows to a bit for each eighth process and machine.
const FEW: usize = 8;

/// In place of a row.
const NO_ROW: usize = usize::MAX;

#[derive(Clone, Debug)]
struct Triple {
    of: usize,
    against: usize,
    target: i64,
    weight: i64,
}

/// An assignment that keeps all hard constraints, and how much room it leaves.
#[derive(Clone, Debug)]
pub(super) struct State<'a> {
    problem: &'a Problem,
    resources: usize,
    assignment: Vec<MachineId>,
    /// The processes of each machine, and where each is in that list.
    held: Vec<Vec<ProcessId>>,
    place: Vec<u32>,
    service_of: Vec<u32>,
    /// By process and resource: what it needs, and that without transient resources. These it
    /// goes on holding at home, so that its own machine has them for it whether it is there or not.
    need: Vec<i64>,
    need_at_home: Vec<i64>,
    move_cost: Vec<i64>,
    between_weight: i64,
    service_weight: i64,
    load_weight: Vec<i64>,
    /// By resource: what a unit that is lacking costs. Nothing may lack when there is none.
    prices: Option<Vec<i64>>,
    /// Of how many resources of machines more is used than there is.
    overfull: usize,
    triples: Vec<Triple>,
    /// By machine and resource: what may yet be used; what is used above the safety capacity
    /// (below 0 while it is not reached); what is not used.
    room: Vec<i64>,
    above: Vec<i64>,
    free: Vec<i64>,
    /// By machine: what its load and its balance cost.
    machine_cost: Vec<i64>,
    cost: i64,
    on_row: Vec<usize>,
    on: Vec<u64>,
    location_row: Vec<usize>,
    in_location: Vec<u32>,
    locations_held: Vec<u32>,
    neighbourhood_row: Vec<usize>,
    in_neighbourhood: Vec<u32>,
    /// By service how many processes are away from home, by such a number how many services have
    /// it, and the greatest.
    away: Vec<u32>,
    services_with: Vec<u32>,
    most_away: usize,
}

impl<'a> State<'a> {
    /// The state of an assignment that is known to keep all hard constraints.
    pub(super) fn new(problem: &'a Problem, assignment: &[MachineId]) -> Self {
        let mut state = Self::at_home(problem);
        // All leave before any comes: two of a service may pass through one machine.
        let moved = || (0..).zip(assignment).zip(problem.initial()).filter(|(to, at)| to.1 != *at);
        moved().for_each(|((process, _), _)| state.depart(process));
        moved().for_each(|((process, machine), _)| state.arrive(process, *machine));
        state.cost = state.reckon();
        state
    }

    /// The initial assignment.
    fn at_home(problem: &'a Problem) -> Self {
        let parts = &problem.parts;
        let (resources, machines) = (parts.resources.len(), parts.machines.len());
        let services = parts.services.len();
        let needs = || parts.processes.iter().flat_map(|it| it.requirement.iter().copied());
        let staying = needs().zip(parts.resources.iter().cycle());
        let mut state = Self {
            problem,
            resources,
            assignment: parts.initial.clone(),
            held: vec![Vec::new(); machines],
            place: vec![0; parts.processes.len()],
            service_of: parts.processes.iter().map(|process| process.service).collect(),
            need: needs().map(small).collect(),
            need_at_home: staying
                .map(|(need, resource)| if resource.transient { 0 } else { small(need) })
                .collect(),
            move_cost: parts
                .processes
                .iter()
                .map(|process| small(process.move_cost.saturating_mul(parts.weights.process)))
                .collect(),
            between_weight: small(parts.weights.machine),
            service_weight: small(parts.weights.service),
            prices: None,
            overfull: 0,
            load_weight: parts.resources.iter().map(|it| small(it.load_weight)).collect(),
            triples: parts
                .balances
                .iter()
                .filter(|triple| triple.weight > 0)
                .map(|triple| Triple {
                    of: triple.of,
                    against: triple.against,
                    target: small(triple.target),
                    weight: small(triple.weight),
                })
                .collect(),
            room: Vec::new(),
            above: Vec::new(),
            free: Vec::new(),
            machine_cost: vec![0; machines],
            cost: 0,
            on_row: vec![NO_ROW; services],
            on: Vec::new(),
            location_row: vec![NO_ROW; services],
            in_location: Vec::new(),
            locations_held: vec![0; services],
            neighbourhood_row: vec![NO_ROW; services],
            in_neighbourhood: Vec::new(),
            away: vec![0; services],
            services_with: vec![u32::try_from(services).unwrap_or(u32::MAX)],
            most_away: 0,
        };
        for machine in &parts.machines {
            state.room.extend(machine.capacity.iter().map(|it| small(*it)));
            state.above.extend(machine.safety.iter().map(|it| -small(*it)));
        }
        state.free.clone_from(&state.room);
        state.make_rows();
        for process in 0..parts.processes.len() {
            let machine = state.assignment[process] as usize;
            for at in 0..resources {
                let need = state.need[process * resources + at];
                state.room[machine * resources + at] -= need;
                state.free[machine * resources + at] -= need;
                state.above[machine * resources + at] += need;
            }
            state.enter(process, machine);
        }
        state.cost = state.reckon();
        state
    }

    /// Rows for the services that need them.
    fn make_rows(&mut self) {
        let problem = self.problem;
        let words = problem.parts.machines.len().div_ceil(64);
        for service in 0..problem.parts.services.len() {
            if problem.members[service].len() > FEW {
                self.on_row[service] = self.on.len();
                self.on.resize(self.on.len() + words, 0);
            }
            if problem.parts.services[service].spread_min > 1 {
                self.location_row[service] = self.in_location.len();
                self.in_location.resize(self.in_location.len() + problem.locations, 0);
            }
            if !problem.needs[service].is_empty() || !problem.needed_by[service].is_empty() {
                self.neighbourhood_row[service] = self.in_neighbourhood.len();
                let length = self.in_neighbourhood.len() + problem.neighbourhoods;
                self.in_neighbourhood.resize(length, 0);
            }
        }
    }

    /// Costs all machines anew and adds up what the assignment costs.
    fn reckon(&mut self) -> i64 {
        let mut cost = self.service_weight * i64::try_from(self.most_away).unwrap_or(i64::MAX);
        for machine in 0..self.machine_cost.len() {
            self.machine_cost[machine] =
                self.machine_cost_if(machine, |_| 0) + self.lack_cost_if(machine, |_| 0);
            cost += self.machine_cost[machine];
        }
        for (process, machine) in (0..).zip(&self.assignment) {
            cost += self.distance(process, *machine);
        }
        cost
    }

    /// Puts a price, by resource, on what is used above the capacities; or forbids it.
    pub(super) fn set_prices(&mut self, prices: Option<Vec<i64>>) {
        self.prices = prices;
        self.cost = self.reckon();
    }

    /// Whether any machine lacks anything.
    pub(super) const fn is_overfull(&self) -> bool {
        self.overfull > 0
    }

    pub(super) const fn cost(&self) -> i64 {
        self.cost
    }

    pub(super) fn machines(&self) -> MachineId {
        // Problem::new has seen to it that there are not more.
        MachineId::try_from(self.machine_cost.len()).unwrap_or(MachineId::MAX)
    }

    pub(super) fn assignment(&self) -> &[MachineId] {
        &self.assignment
    }

    /// The processes on a machine.
    pub(super) fn held(&self, machine: MachineId) -> &[ProcessId] {
        &self.held[machine as usize]
    }

    /// Whether more is used of a machine than it has.
    pub(super) fn lacks(&self, machine: MachineId) -> bool {
        self.room(machine).iter().any(|room| *room < 0)
    }

    /// Whether a process gives back some of what a machine is short of, when it leaves.
    pub(super) fn relieves(&self, process: ProcessId, machine: MachineId) -> bool {
        let gives = self.takes(process, machine);
        self.room(machine).iter().zip(gives).any(|(room, gives)| *room < 0 && *gives > 0)
    }

    pub(super) fn machine_of(&self, process: ProcessId) -> MachineId {
        self.assignment[process as usize]
    }

    pub(super) fn home(&self, process: ProcessId) -> MachineId {
        self.problem.parts.initial[process as usize]
    }

    /// What load and balance of a machine cost when its use changes by so much.
    #[inline]
    fn machine_cost_if(&self, machine: usize, change: impl Fn(usize) -> i64) -> i64 {
        let start = machine * self.resources;
        let above = &self.above[start..start + self.resources];
        let mut cost = 0;
        for (at, (above, weight)) in above.iter().zip(&self.load_weight).enumerate() {
            cost += (above + change(at)).max(0) * weight;
        }
        let free = &self.free[start..start + self.resources];
        for Triple { of, against, target, weight } in &self.triples {
            let wanted = target * (free[*of] - change(*of));
            cost += (wanted - (free[*against] - change(*against))).max(0) * weight;
        }
        cost
    }

    /// What it costs that more is used of a machine than it has, when it takes so much more.
    #[inline]
    fn lack_cost_if(&self, machine: usize, taken: impl Fn(usize) -> i64) -> i64 {
        let Some(prices) = &self.prices else { return 0 };
        let start = machine * self.resources;
        let room = &self.room[start..start + self.resources];
        let lacks = room.iter().enumerate().map(|(at, room)| (taken(at) - room).max(0));
        lacks.zip(prices).map(|(lack, price)| lack * price).sum()
    }

    /// What the moves cost of a process that is on this machine, but for its service.
    #[inline]
    fn distance(&self, process: ProcessId, machine: MachineId) -> i64 {
        let home = self.home(process);
        if home == machine {
            return 0;
        }
        let between = i64::try_from(self.problem.between(home, machine)).unwrap_or(i64::MAX);
        self.move_cost[process as usize] + self.between_weight * between
    }

    #[inline]
    fn needs(&self, process: ProcessId) -> &[i64] {
        let start = process as usize * self.resources;
        &self.need[start..start + self.resources]
    }

    /// What a process takes of the room of a machine when it comes, and gives back when it goes.
    #[inline]
    fn takes(&self, process: ProcessId, machine: MachineId) -> &[i64] {
        let start = process as usize * self.resources;
        let home = self.home(process) == machine;
        let list = if home { &self.need_at_home } else { &self.need };
        &list[start..start + self.resources]
    }

    #[inline]
    fn room(&self, machine: MachineId) -> &[i64] {
        let start = machine as usize * self.resources;
        &self.room[start..start + self.resources]
    }

    /// Whether a machine has room for a process.
    #[inline]
    pub(super) fn fits(&self, process: ProcessId, machine: MachineId) -> bool {
        self.takes(process, machine).iter().zip(self.room(machine)).all(|(need, room)| need <= room)
    }

    /// Whether a machine has room for a process when another has left it.
    #[inline]
    fn fits_for(&self, process: ProcessId, leaver: ProcessId, machine: MachineId) -> bool {
        let (takes, gives) = (self.takes(process, machine), self.takes(leaver, machine));
        let after = self.room(machine).iter().zip(gives).map(|(room, gives)| room + gives);
        takes.iter().zip(after).all(|(need, room)| *need <= room)
    }

    /// What moving a process to another machine would add to the cost, when it is allowed and adds
    /// no more than `most`.
    #[inline]
    pub(super) fn try_shift(&self, process: ProcessId, to: MachineId, most: f64) -> Option<i64> {
        let from = self.machine_of(process);
        if from == to || (self.prices.is_none() && !self.fits(process, to)) {
            return None;
        }
        let delta = self.shift_delta(process, to);
        (as_float(delta) <= most && self.may_move(process, to)).then_some(delta)
    }

    /// What exchanging two processes would add to the cost, when it is allowed and adds no more
    /// than `most`.
    #[inline]
    pub(super) fn try_swap(&self, one: ProcessId, other: ProcessId, most: f64) -> Option<i64> {
        let (here, there) = (self.machine_of(one), self.machine_of(other));
        let services = (self.service_of[one as usize], self.service_of[other as usize]);
        let strict = self.prices.is_none();
        if here == there
            || services.0 == services.1
            || (strict && !(self.fits_for(other, one, here) && self.fits_for(one, other, there)))
        {
            return None;
        }
        let delta = self.swap_delta(one, other);
        let accepted = as_float(delta) <= most
            && self.may_move(one, there)
            && self.may_move(other, here)
            && !self.entangled(services, here, there);
        accepted.then_some(delta)
    }

    /// What an exchange adds to the cost, whether or not it is allowed.
    #[inline]
    fn swap_delta(&self, one: ProcessId, other: ProcessId) -> i64 {
        let (here, there) = (self.machine_of(one), self.machine_of(other));
        let (first, second) = (self.needs(one), self.needs(other));
        let mut delta = self.machine_cost_if(here as usize, |at| second[at] - first[at])
            + self.machine_cost_if(there as usize, |at| first[at] - second[at])
            - self.machine_cost[here as usize]
            - self.machine_cost[there as usize]
            + self.distance(one, there)
            - self.distance(one, here)
            + self.distance(other, here)
            - self.distance(other, there);
        if self.prices.is_some() {
            let (gives, takes) = (self.takes(one, here), self.takes(other, here));
            delta += self.lack_cost_if(here as usize, |at| takes[at] - gives[at]);
            let (gives, takes) = (self.takes(other, there), self.takes(one, there));
            delta += self.lack_cost_if(there as usize, |at| takes[at] - gives[at]);
        }
        if self.service_weight != 0 {
            delta += self.service_weight
                * self.most_away_change(&[
                    (self.service_of[one as usize], self.leaving(one, here, there)),
                    (self.service_of[other as usize], self.leaving(other, there, here)),
                ]);
        }
        delta
    }

    /// Whether one of two services depends on the other, so that what each may do alone does not say
    /// what they may do together. Such exchanges are left to moves one by one.
    fn entangled(&self, services: (u32, u32), here: MachineId, there: MachineId) -> bool {
        let near = &self.problem.neighbourhood_of;
        near[here as usize] != near[there as usize]
            && (self.problem.needs[services.0 as usize].contains(&services.1)
                || self.problem.needs[services.1 as usize].contains(&services.0))
    }

    /// 1 when a process would leave its home, -1 when it would come back.
    #[inline]
    fn leaving(&self, process: ProcessId, from: MachineId, to: MachineId) -> i32 {
        let home = self.home(process);
        i32::from(home == from) - i32::from(home == to)
    }

    #[inline]
    fn service_delta(&self, process: ProcessId, from: MachineId, to: MachineId) -> i64 {
        if self.service_weight == 0 {
            return 0;
        }
        let service = self.service_of[process as usize];
        let leaving = self.leaving(process, from, to);
        if leaving == 0 {
            return 0;
        }
        self.service_weight * self.most_away_change(&[(service, leaving)])
    }

    /// How the most processes away of one service change. The services differ.
    #[inline]
    fn most_away_change(&self, changes: &[(u32, i32)]) -> i64 {
        let (mut more, mut fewer) = (false, 0);
        for (service, leaving) in changes {
            let at_most = self.away[*service as usize] as usize == self.most_away;
            more |= at_most && *leaving > 0;
            fewer += u32::from(at_most && *leaving < 0);
        }
        if more {
            return 1;
        }
        // When all that have the most lose one, some other comes to what is left, or they do.
        let joins = changes.iter().any(|(service, leaving)| {
            *leaving > 0 && self.away[*service as usize] as usize + 1 == self.most_away
        });
        let all = fewer > 0 && fewer == self.services_with[self.most_away] && !joins;
        -i64::from(all)
    }

    /// Whether a service has a process on a machine.
    fn holds(&self, service: usize, machine: MachineId) -> bool {
        let row = self.on_row[service];
        if row != NO_ROW {
            return self.on[row + machine as usize / 64] >> (machine % 64) & 1 == 1;
        }
        let members = &self.problem.members[service];
        members.len() > 1 && members.iter().any(|it| self.machine_of(*it) == machine)
    }

    /// Whether the services allow a process to go to a machine.
    pub(super) fn may_move(&self, process: ProcessId, to: MachineId) -> bool {
        let service = self.service_of[process as usize] as usize;
        let from = self.machine_of(process);
        !self.holds(service, to)
            && self.stays_spread(service, from as usize, to as usize)
            && self.dependencies_hold(service, from as usize, to as usize)
    }

    fn stays_spread(&self, service: usize, from: usize, to: usize) -> bool {
        let row = self.location_row[service];
        if row == NO_ROW {
            return true;
        }
        let (from, to) = (self.problem.location_of[from], self.problem.location_of[to]);
        if from == to {
            return true;
        }
        let gone = u32::from(self.in_location[row + from as usize] == 1);
        let come = u32::from(self.in_location[row + to as usize] == 0);
        self.locations_held[service] + come
            >= self.problem.parts.services[service].spread_min + gone
    }

    fn dependencies_hold(&self, service: usize, from: usize, to: usize) -> bool {
        let row = self.neighbourhood_row[service];
        if row == NO_ROW {
            return true;
        }
        let near = &self.problem.neighbourhood_of;
        let (from, to) = (near[from] as usize, near[to] as usize);
        if from == to {
            return true;
        }
        let there = |service: &u32, near: usize| {
            self.in_neighbourhood[self.neighbourhood_row[*service as usize] + near] > 0
        };
        let last = self.in_neighbourhood[row + from] == 1;
        self.problem.needs[service].iter().all(|needed| there(needed, to))
            && !(last && self.problem.needed_by[service].iter().any(|other| there(other, from)))
    }

    /// Moves a process; what it adds to the cost is known. The caller has made sure that it may.
    pub(super) fn apply_shift(&mut self, process: ProcessId, to: MachineId, delta: i64) {
        self.shift(process, to);
        self.cost += delta;
    }

    /// Exchanges two processes; as [`Self::apply_shift`].
    pub(super) fn apply_swap(&mut self, one: ProcessId, other: ProcessId, delta: i64) {
        let (here, there) = (self.machine_of(one), self.machine_of(other));
        self.shift(one, there);
        self.shift(other, here);
        self.cost += delta;
    }

    /// Moves a process to another machine and reckons what the cost is then.
    pub(super) fn shift_and_reckon(&mut self, process: ProcessId, to: MachineId) {
        let delta = self.shift_delta(process, to);
        self.apply_shift(process, to, delta);
    }

    /// What a move adds to the cost, whether or not it is allowed.
    #[inline]
    fn shift_delta(&self, process: ProcessId, to: MachineId) -> i64 {
        let from = self.machine_of(process);
        let need = self.needs(process);
        let mut delta = self.machine_cost_if(from as usize, |at| -need[at])
            + self.machine_cost_if(to as usize, |at| need[at])
            - self.machine_cost[from as usize]
            - self.machine_cost[to as usize]
            + self.distance(process, to)
            - self.distance(process, from)
            + self.service_delta(process, from, to);
        if self.prices.is_some() {
            let (gives, takes) = (self.takes(process, from), self.takes(process, to));
            delta += self.lack_cost_if(from as usize, |at| -gives[at])
                + self.lack_cost_if(to as usize, |at| takes[at]);
        }
        delta
    }

    fn shift(&mut self, process: ProcessId, to: MachineId) {
        let from = self.machine_of(process);
        self.depart(process);
        self.arrive(process, to);
        for machine in [from as usize, to as usize] {
            self.machine_cost[machine] =
                self.machine_cost_if(machine, |_| 0) + self.lack_cost_if(machine, |_| 0);
        }
    }

    /// Takes a process off its machine, on which it goes on being written down.
    fn depart(&mut self, process: ProcessId) {
        let (id, machine) = (process as usize, self.machine_of(process));
        self.change_use(id, machine, -1);
        self.leave(id, machine as usize);
        if machine == self.home(process) {
            self.count_away(self.service_of[id] as usize, 1);
        }
    }

    /// Puts a process that has departed on a machine.
    fn arrive(&mut self, process: ProcessId, machine: MachineId) {
        let id = process as usize;
        self.change_use(id, machine, 1);
        self.assignment[id] = machine;
        self.enter(id, machine as usize);
        if machine == self.home(process) {
            self.count_away(self.service_of[id] as usize, -1);
        }
    }

    fn change_use(&mut self, process: usize, machine: MachineId, sign: i64) {
        let (start, first) = (machine as usize * self.resources, process * self.resources);
        let home = self.problem.parts.initial[process] == machine;
        let takes = if home { &self.need_at_home } else { &self.need };
        for at in 0..self.resources {
            let need = sign * self.need[first + at];
            let room = &mut self.room[start + at];
            self.overfull -= usize::from(*room < 0);
            *room -= sign * takes[first + at];
            self.overfull += usize::from(*room < 0);
            self.free[start + at] -= need;
            self.above[start + at] += need;
        }
    }

    fn count_away(&mut self, service: usize, leaving: i32) {
        let before = self.away[service];
        self.away[service] = before.saturating_add_signed(leaving);
        let after = self.away[service] as usize;
        self.services_with[before as usize] -= 1;
        if after >= self.services_with.len() {
            self.services_with.resize(after + 1, 0);
        }
        self.services_with[after] += 1;
        self.most_away = self.most_away.max(after);
        while self.most_away > 0 && self.services_with[self.most_away] == 0 {
            self.most_away -= 1;
        }
    }

    fn enter(&mut self, process: usize, machine: usize) {
        let held = &mut self.held[machine];
        self.place[process] = u32::try_from(held.len()).unwrap_or(u32::MAX);
        held.push(u32::try_from(process).unwrap_or(u32::MAX));
        let service = self.service_of[process] as usize;
        if self.on_row[service] != NO_ROW {
            self.on[self.on_row[service] + machine / 64] |= 1 << (machine % 64);
        }
        if self.location_row[service] != NO_ROW {
            let location = self.problem.location_of[machine] as usize;
            let count = &mut self.in_location[self.location_row[service] + location];
            self.locations_held[service] += u32::from(*count == 0);
            *count += 1;
        }
        if self.neighbourhood_row[service] != NO_ROW {
            let near = self.problem.neighbourhood_of[machine] as usize;
            self.in_neighbourhood[self.neighbourhood_row[service] + near] += 1;
        }
    }

    fn leave(&mut self, process: usize, machine: usize) {
        let place = self.place[process];
        self.held[machine].swap_remove(place as usize);
        if let Some(other) = self.held[machine].get(place as usize) {
            self.place[*other as usize] = place;
        }
        let service = self.service_of[process] as usize;
        if self.on_row[service] != NO_ROW {
            self.on[self.on_row[service] + machine / 64] &= !(1 << (machine % 64));
        }
        if self.location_row[service] != NO_ROW {
            let location = self.problem.location_of[machine] as usize;
            let count = &mut self.in_location[self.location_row[service] + location];
            *count -= 1;
            self.locations_held[service] -= u32::from(*count == 0);
        }
        if self.neighbourhood_row[service] != NO_ROW {
            let near = self.problem.neighbourhood_of[machine] as usize;
            self.in_neighbourhood[self.neighbourhood_row[service] + near] -= 1;
        }
    }
}

/// A number that [`Problem::new`] found to be small.
fn small(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Near enough to compare with a limit drawn by lot.
#[expect(clippy::cast_precision_loss, reason = "a limit drawn by lot needs no 63 bits")]
pub(super) const fn as_float(delta: i64) -> f64 {
    delta as f64
}
