"""What is where in a bone with a screw in it: attenuation and class of every point.

An `Explant` is a piece of tubular bone (cortical shell with canals, trabecular network, marrow)
that a screw (M2 × 4 mm) crosses. Mg screws corrode: a front eats in from the surface, with pits,
and leaves a fragmented, textured layer. All is a function of (z, y, x) in millimetres and the
seed, evaluated on one plane of constant z at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.noise import SplineNoise, norm, rounded

__all__ = ["CLASSES", "HEIGHT", "IMPLANT", "MATERIALS", "SCREW_RADIUS", "Explant", "Material"]

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Mask = npt.NDArray[np.uint8]

HEIGHT = 4.9
"""Extent of every explant along z in mm, with some empty space above and below."""

SCREW_RADIUS = 1.0
"""Of the thread's crest, in mm."""

CLASSES = ("background", "bone", "implant", "degradation layer")
"""Class names by mask value."""

_, BONE, IMPLANT, LAYER = range(4)


@dataclass(frozen=True)
class Material:
    """What a screw is made of: attenuation in 1/cm near 35 keV, corrosion depth in mm at the start
    and per week of healing (0, 0: does not degrade), bright inclusions, strength of its streaks."""

    attenuation: float
    corrosion: tuple[float, float] = (0.0, 0.0)
    inclusions: float = 0.0
    streaks: float = 0.0


MATERIALS: Mapping[str, Material] = {
    "Mg-5Gd": Material(3.4, (0.075, 0.0095), inclusions=0.35),
    "Mg-10Gd": Material(4.9, (0.055, 0.0080), inclusions=0.7),
    "Ti": Material(15.0, streaks=1.1),
    "PEEK": Material(0.8),
}
"""The screws of SCIENCE.md. Ti and PEEK do not degrade: their samples have no class 3."""

# the rest of the M2 coarse thread, in mm
_ROOT, _PITCH, _LENGTH = 0.765, 0.4, 4.0


@dataclass(frozen=True)
class _Anatomy:
    """What differs from sample to sample, drawn from its seed. Lengths in mm."""

    density: float  # of the bone, relative
    angle: float  # of the shaft in the slice, radians
    radius: tuple[float, float]  # of the shaft, in the slice and along z
    centre: tuple[float, float]  # of the shaft: v, z
    cortex: float  # wall thickness
    bend: float  # of the shaft, 1/mm
    flare: float  # of the shaft along its axis, 1/mm
    cut: tuple[float, float]  # half length of the piece of shaft, and slant of its ends
    trabecular: float  # threshold of the network: how much of it there is
    screw: tuple[float, float, float]  # y, x of the axis at mid height, z of the tip
    tilt: tuple[float, float]  # dy/dz, dx/dz of the axis
    head: float  # radius of what is left of the head; 0: absent
    healing: float  # 0 to 1
    corrosion: float  # mean depth
    container: float  # inner radius
    medium: float  # attenuation around the bone
    filled: tuple[float, float]  # z between which there is any sample at all


@dataclass(frozen=True)
class Explant:
    """One bone with one screw. ``material``: a key of `MATERIALS`; ``weeks`` of healing."""

    seed: int
    material: str
    weeks: int

    def tissue(self, z: float, y: Floats, x: Floats) -> tuple[Floats, Mask]:
        """True attenuation in 1/cm and class, both (H, W), at ``z`` mm over ``y`` (H,) × ``x``
        (W,): mm from the middle."""
        a = self._anatomy
        mask = np.zeros((len(y), len(x)), np.uint8)
        attenuation = np.zeros(mask.shape, np.float32)
        if not a.filled[0] <= z <= a.filled[1]:
            return attenuation, mask
        plane = _Plane(self.seed, z, y, x)
        shaft, screw = self._shaft_depth(plane), self._screw_depth(plane)
        self._surroundings(attenuation, plane, shaft)
        self._bone(attenuation, mask, plane, shaft, screw)
        self._implant(attenuation, mask, plane, screw)
        return attenuation, mask

    def axis(self, z: float) -> tuple[float, float]:
        """(y, x) in mm of the screw's axis at ``z``."""
        a = self._anatomy
        w = z - HEIGHT / 2
        return a.screw[0] + a.tilt[0] * w, a.screw[1] + a.tilt[1] * w

    @property
    def brightest(self) -> float:
        """About the highest attenuation in it, 1/cm."""
        return max(2.9 * self._anatomy.density, 1.15 * MATERIALS[self.material].attenuation)

    def _surroundings(self, attenuation: Floats, plane: _Plane, shaft: Floats) -> None:
        """The tube, its filling, and soft tissue that clings to the bone."""
        a = self._anatomy
        inside = self._within_tube(plane)
        attenuation[inside] = a.medium
        attenuation[inside & ~self._within_tube(plane, 0.09)] = a.medium + 0.5
        clinging = shaft + 0.16 * plane.noise("coarse") > -0.22
        tissue = inside & clinging & (plane.noise("middle") > -0.9) & self._within_cut(plane)
        attenuation[tissue] = 0.42 + 0.05 * plane.noise("middle")[tissue]

    def _within_tube(self, plane: _Plane, wall: float = 0.0) -> Flags:
        radius = norm(plane.y[:, None], plane.x[None, :])
        return np.asarray(radius < self._anatomy.container - wall, np.bool_)

    def _shaft_depth(self, plane: _Plane) -> Floats:
        """Depth under the outer surface of the shaft, about mm; negative outside."""
        a = self._anatomy
        u = self._along(plane)
        # a tube that bends, is not quite round, and flares along its axis
        v = self._across(plane) - np.float32(a.centre[0]) - a.bend * u**2
        w = plane.z - a.centre[1]
        flare = 1 + a.flare * u
        e = np.sqrt((v / (a.radius[0] * flare)) ** 2 + (w / a.radius[1]) ** 2) + 1e-6
        slope = np.sqrt((v / a.radius[0] ** 2) ** 2 + (w / a.radius[1] ** 2) ** 2) / e + 1e-6
        depth = (1 - e) / slope + 0.10 * plane.noise("coarse") + 0.012 * plane.noise("front")
        return np.asarray(depth, np.float32)

    def _within_cut(self, plane: _Plane) -> Flags:
        """Whether a pixel belongs to the piece of shaft that was sawn out."""
        a = self._anatomy
        ends = np.abs(self._along(plane) + a.cut[1] * self._across(plane))
        return np.asarray(ends < a.cut[0] + 0.006 * plane.noise("middle"), np.bool_)

    def _along(self, plane: _Plane) -> Floats:
        c, s = math.cos(self._anatomy.angle), math.sin(self._anatomy.angle)
        return np.asarray(c * plane.x[None, :] + s * plane.y[:, None], np.float32)

    def _across(self, plane: _Plane) -> Floats:
        c, s = math.cos(self._anatomy.angle), math.sin(self._anatomy.angle)
        return np.asarray(c * plane.y[:, None] - s * plane.x[None, :], np.float32)

    def _screw_depth(self, plane: _Plane) -> Floats:
        """Depth under the surface that the screw had when it was put in, mm; negative outside."""
        a = self._anatomy
        cy, cx = self.axis(plane.z)
        dy, dx = plane.y[:, None] - np.float32(cy), plane.x[None, :] - np.float32(cx)
        radius = norm(dy, dx)
        turn = np.mod(plane.z / _PITCH - rounded(np.arctan2, dy, dx) / (2 * np.pi), 1.0)
        # a 60° flank with a flat crest (P/8) and a flat root (P/4)
        flank = np.clip((1 - np.abs(2 * turn - 1) - 0.25) / 0.625, 0, 1)
        taper = min(1.0, 0.45 + max(plane.z - a.screw[2], 0) / 0.5)
        surface = (_ROOT + (SCREW_RADIUS - _ROOT) * flank) * taper
        above_tip = plane.z - a.screw[2]
        # sawn off at a slant
        below_top = a.screw[2] + _LENGTH - plane.z + 0.10 * dx
        if a.head:
            surface = np.where(below_top < 0.30, a.head, surface)
        depth = np.minimum(surface - radius, np.minimum(below_top, above_tip))
        return np.asarray(depth, np.float32)

    def _bone(
        self, attenuation: Floats, mask: Mask, plane: _Plane, shaft: Floats, screw: Floats
    ) -> None:
        a = self._anatomy
        wall = a.cortex * (1 + 0.18 * plane.noise("coarse"))
        inside = (shaft > 0) & self._within_cut(plane) & self._within_tube(plane, 0.1)
        marrow = inside & (shaft > wall)
        fat = 0.36 + 0.06 * plane.noise("fine") + 0.05 * plane.noise("middle")
        attenuation[marrow] = fat[marrow]

        near_screw = rounded(np.exp, -np.maximum(-screw, 0) / 0.18)
        trabecula = marrow & self._network(plane, shaft - wall, near_screw)
        cortex = inside & ~marrow
        cortex[cortex] = self._canals(plane, cortex, shaft / wall)
        attenuation[inside & ~marrow] = 0.4

        # what the drill left free, closed by healing
        gap = 0.035 + 0.10 * (1 - a.healing) + 0.07 * plane.noise("contact")
        bone = (trabecula | cortex) & (screw < -np.maximum(gap, -0.05))
        grey = 2.65 * a.density * (1 + 0.045 * plane.noise("middle") + 0.035 * plane.noise("fine"))
        # young bone holds less mineral
        grey = grey * np.where(trabecula, 0.90, 1.0) * (1 - 0.12 * near_screw)
        attenuation[bone] = grey[bone]
        mask[bone] = BONE

    def _network(self, plane: _Plane, below_wall: Floats, near_screw: Floats) -> Flags:
        """The trabecular network: sheets where one field is near zero, opened by a second one."""
        a = self._anatomy
        ridge = np.abs(plane.noise("network")) + 0.35 * np.abs(plane.noise("struts"))
        amount = a.trabecular * (1 + 0.25 * plane.noise("coarse"))
        amount += 0.22 * rounded(np.exp, -np.maximum(below_wall, 0) / 0.35)
        amount += 0.40 * a.healing * near_screw
        return np.asarray(ridge < amount, np.bool_)

    def _canals(self, plane: _Plane, cortex: Flags, inward: Floats) -> Flags:
        """Which pixels of ``cortex`` are bone and not one of its canals, which follow the shaft."""
        canal = plane.noise_at("canals", self._across(plane)[cortex], self._along(plane)[cortex])
        # wider towards the marrow
        return np.asarray(canal < 2.1 - 0.6 * inward[cortex] ** 2, np.bool_)

    def _implant(self, attenuation: Floats, mask: Mask, plane: _Plane, depth: Floats) -> None:
        a, material = self._anatomy, MATERIALS[self.material]
        if not (depth > -0.3).any():
            return
        front = np.zeros_like(depth)
        if a.corrosion:
            rough = 1 + 0.45 * plane.noise("front") + 0.22 * plane.noise("middle")
            front = np.maximum(a.corrosion * rough, 0.012) + self._pits(plane, depth)
            self._layer(attenuation, mask, plane, depth, front)
        implant = depth > front
        metal = material.attenuation * (1 + 0.012 * plane.noise("middle"))
        if material.inclusions:
            metal = metal + material.inclusions * np.maximum(plane.noise("fine") - 1.1, 0)
        attenuation[implant] = metal[implant]
        mask[implant] = IMPLANT

    def _pits(self, plane: _Plane, depth: Floats) -> Floats:
        """How much deeper than the front it has eaten in, mm. Pits start at the surface."""
        near = (depth > -0.05) & (depth < 0.6)
        cy, cx = self.axis(plane.z)
        dy, dx = plane.y[:, None] - np.float32(cy), plane.x[None, :] - np.float32(cx)
        # the same field all along a radius, so that no pit is a bubble inside the metal
        radius = norm(dy, dx)[near]
        outward = np.asarray(0.9 / np.maximum(radius, 0.05), np.float32)
        y, x = (np.broadcast_to(d, depth.shape)[near] * outward for d in (dy, dx))
        value = plane.noise_at("pits", y, x) + 0.35 * plane.noise("front")[near]
        pits = np.zeros_like(depth)
        pits[near] = 0.17 * np.maximum(value - 1.0, 0) * np.clip((radius - 0.3) / 0.35, 0, 1)
        return pits

    def _layer(
        self,
        attenuation: Floats,
        mask: Mask,
        plane: _Plane,
        depth: Floats,
        front: Floats,
    ) -> None:
        """Corrosion products: from a little outside the old surface to the front, cracked."""
        a = self._anatomy
        swelling = 0.03 + 0.35 * a.corrosion + 0.035 * plane.noise("contact")
        zone = (depth > -np.maximum(swelling, 0)) & (mask != BONE) & (depth <= front)
        # how far out, 0 at the front, 1 at the outside
        out = np.asarray(np.clip((front - depth) / (front + swelling + 1e-3), 0, 1), np.float32)
        crack = self._cracks(plane, np.float32(0.008) + np.float32(0.006) * out)
        lost = plane.noise("front") * 0.6 + plane.noise("contact") * 0.8 > 1.55 - 0.75 * out
        attenuation[zone] = 0.4
        layer = zone & (crack < 0.5) & ~lost
        grey = 1.55 + 0.55 * out + 0.33 * plane.noise("fine") + 0.30 * plane.noise("middle")
        grey = grey + 0.05 * MATERIALS[self.material].attenuation
        grey = np.maximum(grey, 0.6) * (1 - crack) + 0.4 * crack
        attenuation[layer] = grey[layer]
        mask[layer] = LAYER

    def _cracks(self, plane: _Plane, half_width: Floats) -> Floats:
        """How much of each pixel is crack, 0 to 1: most are narrower than a pixel, and nobody
        labels those."""
        cell = _CELLS["cracks"][0]
        distance = np.abs(plane.noise("cracks")) * np.float32(0.9 * cell)
        covered = (half_width + plane.pixel / 2 - distance) / plane.pixel
        open_here = plane.noise("contact") > -0.2
        return np.asarray(
            np.clip(covered, 0, np.minimum(2 * half_width / plane.pixel, 1)) * open_here, np.float32
        )

    @cached_property
    def _anatomy(self) -> _Anatomy:
        rng = np.random.default_rng([self.seed, 1])
        start, weekly = MATERIALS[self.material].corrosion
        tip = rng.uniform(0.28, 0.42)
        return _Anatomy(
            density=rng.uniform(0.86, 1.14),
            angle=rng.uniform(0, np.pi),
            radius=(rng.uniform(1.85, 2.25), rng.uniform(1.95, 2.10)),
            centre=(rng.normal(0, 0.08), 2.2 + rng.normal(0, 0.03)),
            cortex=rng.uniform(0.42, 0.62),
            bend=rng.normal(0, 0.04),
            flare=rng.normal(0, 0.05),
            cut=(rng.uniform(2.2, 2.7), rng.normal(0, 0.06)),
            trabecular=rng.uniform(0.30, 0.55),
            screw=(rng.normal(0, 0.12), rng.normal(0, 0.12), tip),
            tilt=(rng.normal(0, 0.03), rng.normal(0, 0.03)),
            head=float(rng.choice([0.0, 1.35])),
            healing=min(self.weeks / 12, 1.0) * rng.uniform(0.85, 1.0),
            corrosion=(start + weekly * self.weeks) * rng.uniform(0.85, 1.2),
            container=rng.uniform(3.0, 3.6),
            medium=rng.uniform(0.12, 0.30),
            filled=(rng.uniform(0.10, 0.20), HEIGHT - rng.uniform(0.10, 0.20)),
        )


# Lattice spacings (z, y, x) in mm of each field
_CELLS: Mapping[str, tuple[float, float, float]] = {
    "coarse": (0.8, 0.8, 0.8),
    "network": (0.20, 0.20, 0.20),
    "struts": (0.13, 0.13, 0.13),
    "canals": (0.045, 0.045, 0.4),  # along z, across the shaft, along it
    "contact": (0.16, 0.16, 0.16),
    "front": (0.22, 0.22, 0.22),
    "pits": (0.14, 0.14, 0.14),
    "cracks": (0.11, 0.11, 0.11),
    "middle": (0.075, 0.075, 0.075),
    "fine": (0.035, 0.035, 0.035),
}


class _Plane:
    """A plane of constant z: its coordinates and its noise, each field made when asked for."""

    def __init__(self, seed: int, z: float, y: Floats, x: Floats) -> None:
        self.z, self.y, self.x = z, y, x
        self.pixel = np.float32(np.ptp(x) / max(len(x) - 1, 1) or 0.01)
        self._seed = seed
        self._made: dict[str, Floats] = {}

    def noise(self, name: str) -> Floats:
        """The field ``name`` over the plane, (H, W) float32, mean 0, variance 1."""
        if name not in self._made:
            self._made[name] = self._field(name).grid(self.z, self.y, self.x)
        return self._made[name]

    def noise_at(self, name: str, y: Floats, x: Floats) -> Floats:
        """The field ``name`` at other places of the plane."""
        return self._field(name).at(self.z, y, x)

    def _field(self, name: str) -> SplineNoise:
        return SplineNoise((self._seed, 100 + list(_CELLS).index(name)), _CELLS[name])
